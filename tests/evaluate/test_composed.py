from dataclasses import replace

import pytest
import torch

from evaluate_oracles import pessimistic_rank, rank_in_gallery, unit, units
from unicl.errors import UserError
from unicl.evaluate.composed import cannot_compose, compose, run_composed
from unicl.evaluate.queries import Composed
from unicl.use.query import Query, Term


def asked(job, **changes):
    ids = [sample.id for sample in job.pictures.samples]
    queries = Composed(
        name="q.csv",
        images=(ids[0], ids[7], ids[0]),
        texts=("green", "red", "green"),
        signs=(1, -1, -1),
        targets=((ids[6], ids[9]), (ids[12],), (ids[3],)),
    )
    return replace(job, options=replace(job.options, composed=replace(queries, **changes)))


def test_a_query_is_the_unit_sum_and_a_minus_turns_the_text_around():
    images, texts = units(3, 6, seed=0), units(3, 6, seed=1)
    found = compose(images, texts, signs_Q=torch.tensor([1, -1, 1]))
    for row, sign in enumerate((1, -1, 1)):
        wanted = unit([float(a) + sign * float(b) for a, b in zip(images[row], texts[row], strict=True)])
        assert found[row].tolist() == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(UserError, match="takes all of its image away"):
        compose(images, images, signs_Q=torch.tensor([1, -1, 1]))


def test_a_query_is_what_search_makes_of_the_same_picture_and_text(job, model):
    path = job.pictures.samples[0].image
    text = model.embed_text(["green"])
    for sign in (1, -1):
        wanted = Query((Term(path), Term("green", sign))).vector(model)
        found = compose(job.pictures.instances[:1], text, signs_Q=torch.tensor([sign]))
        assert torch.allclose(found[0], wanted, atol=1e-6)


def test_ranks_are_those_of_plain_loops_without_the_query_image(job, model):
    job = asked(job)
    result = run_composed(job)
    gallery, ids = job.pictures.instances, [sample.id for sample in job.pictures.samples]
    queries, texts = job.options.composed, model.embed_text(["green", "red", "green"])
    for name, weight in (("composed", 1), ("image alone", 0)):
        wanted = []
        for row, (image, sign) in enumerate(zip(queries.images, queries.signs, strict=True)):
            own = ids.index(image)
            vector = torch.nn.functional.normalize(gallery[own] + weight * sign * texts[row], dim=0)
            right = {ids.index(one) for one in queries.targets[row]}
            wanted.append(rank_in_gallery(vector, gallery, right, own))
        assert result.ranks[name] == tuple(wanted)
    numbers = {score.key: score for score in result.scores}
    assert numbers["composed/composed/r5"].value == sum(rank <= 5 for rank in result.ranks["composed"]) / 3
    assert {"composed/image_alone/r1", "composed/text_alone/r1"} <= numbers.keys()
    assert result.facts["of them with minus"] == 2
    assert "all but the query's own" in result.facts["images searched"]


def test_a_text_that_is_its_target_is_found_and_mistakes_show_the_image_and_the_signed_text(job, model):
    vectors = job.pictures.instances.clone()
    vectors[6] = torch.nn.functional.normalize(vectors[0] + model.embed_text(["green"])[0], dim=0)
    moved = asked(replace(job, pictures=replace(job.pictures, instances=vectors)))
    result = run_composed(moved)
    assert result.ranks["composed"][0] == 1
    for one in result.mistakes["composed"]:
        assert one.text in ("− red", "− green")
        assert one.image is not None
        assert one.id not in [answer.text for answer in one.found], "the query itself is not found"
        assert one.rank == pessimistic_rank([a.score for a in (one.wanted, *one.found)], {0}) or one.rank > 3


def test_queries_whose_images_cannot_be_read_are_left_out_and_counted(job):
    ids = [sample.id for sample in job.pictures.samples]
    result = run_composed(asked(job, images=("broken.png", ids[7], ids[0])))
    assert result.facts["queries"] == 2
    assert result.facts["queries left out whose images cannot be read"] == 1
    with pytest.raises(UserError, match="no query has an image and a target that can be read"):
        run_composed(asked(job, images=("broken.png",) * 3))


def test_reasons_why_it_cannot_be_done(job):
    assert "--queries" in cannot_compose(job.plan)
    assert cannot_compose(asked(job).plan) is None
