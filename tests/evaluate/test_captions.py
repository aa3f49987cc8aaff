from dataclasses import replace

import pytest
import torch

from evaluate_oracles import all_cosines, parts_model, pessimistic_rank, tiny_model
from unicl import compare
from unicl.evaluate.captions import cannot_retrieve, run_retrieval
from unicl.evaluate.pictures import embed_pictures


def test_ranks_are_those_of_the_models_embeddings(job, model):
    result = run_retrieval(job)
    texts = list(dict.fromkeys(c for s in job.pictures.samples for c in s.captions))
    vectors = model.embed_text(texts, view="instances")
    scores = all_cosines(job.pictures.instances, vectors)
    several = [{texts.index(c) for c in s.captions} for s in job.pictures.samples]
    assert result.ranks["image to text"] == tuple(
        pessimistic_rank(row, own) for row, own in zip(scores, several, strict=True)
    )
    assert result.ranks["text to image"] == tuple(
        pessimistic_rank([row[t] for row in scores], {i for i, own in enumerate(several) if t in own})
        for t in range(len(texts))
    )
    assert (result.facts["images"], result.facts["distinct texts"], result.facts["right pairs"]) == (20, 24, 40)


def test_the_worst_queries_are_shown_with_what_was_found_in_place_of_the_right_answer(job):
    result = run_retrieval(job)
    for kind, direction in (("texts", "text to image"), ("images", "image to text")):
        shown = result.mistakes[kind]
        worst = sorted((rank for rank in result.ranks[direction] if rank > 1), reverse=True)
        assert [one.rank for one in shown] == worst[: job.options.mistakes]
        for one in shown:
            assert one.wanted.right
            assert len(one.found) == 3
            assert one.found[0].score >= one.found[1].score >= one.found[2].score
            assert not one.found[0].right or one.found[0].score == one.wanted.score
    assert all(one.wanted.image is not None and one.text for one in result.mistakes["texts"])
    assert all(one.image is not None and one.wanted.text for one in result.mistakes["images"])


def test_a_model_of_parts_is_ranked_by_its_scores_each_way_by_its_own(job):
    model = parts_model()
    result = run_retrieval(replace(job, model=model, pictures=embed_pictures(model, job.pictures.samples)))
    texts = list(dict.fromkeys(c for s in job.pictures.samples for c in s.captions))
    images = model.encode_images([s.image for s in job.pictures.samples])
    by_image, by_text = compare.scores(model, images, model.encode_texts(texts), view="instances")
    several = [{texts.index(c) for c in s.captions} for s in job.pictures.samples]
    wanted = [pessimistic_rank(row.tolist(), own) for row, own in zip(by_image, several, strict=True)]
    assert sum(a == b for a, b in zip(result.ranks["image to text"], wanted, strict=True)) >= 18, "float16 may swap two"
    assert result.facts["compared by"] == "tokenwise"
    shown = result.mistakes["texts"][0]
    row = texts.index(shown.text)
    assert shown.found[0].score == pytest.approx(float(by_text[:, row].max()), abs=2e-3)
    shown = result.mistakes["images"][0]
    row = [s.id for s in job.pictures.samples].index(shown.id)
    assert shown.found[0].score == pytest.approx(float(by_image[row].max()), abs=2e-3)


def test_a_perfect_model_has_no_mistakes(job):
    vectors = torch.eye(20, 16 + 4)
    perfect = replace(job.pictures, instances=vectors)

    class Echo:
        text = object()

        def embed_text(self, texts, *, view):
            assert view == "instances"
            return vectors[: len(texts)]

    samples = tuple(replace(s, captions=(f"text {k}",)) for k, s in enumerate(perfect.samples))
    result = run_retrieval(replace(job, model=Echo(), pictures=replace(perfect, samples=samples)))
    assert result.mistakes == {"texts": (), "images": ()}
    assert result.scores[0].value == 1


def test_images_without_a_caption_are_left_out_and_counted(job):
    samples = tuple(replace(s, captions=()) if k < 4 else s for k, s in enumerate(job.pictures.samples))
    result = run_retrieval(replace(job, pictures=replace(job.pictures, samples=samples)))
    assert result.facts["images"] == 16
    assert result.facts["images without a caption, left out"] == 4


def test_a_small_crowd_makes_some_recalls_say_that_they_mean_nothing(job):
    few = replace(job, pictures=job.pictures.take(torch.arange(4)))
    assert "recall@5, recall@10 is reached by any model" in run_retrieval(few).notes[0]
    assert run_retrieval(job).notes == ()


def test_reasons_why_it_cannot_be_done(job):
    plan = job.plan
    assert cannot_retrieve(plan) is None
    bare = tuple(replace(s, captions=()) for s in plan.samples)
    assert cannot_retrieve(replace(plan, samples=bare)) == "the data has no captions"
    same = tuple(replace(s, captions=("a picture",)) for s in plan.samples)
    assert "only one caption" in cannot_retrieve(replace(plan, samples=same))
    silent = tiny_model(texts=False, classes=("red",), recipe="cross_entropy")
    assert "'cross_entropy' and has no text tower" in cannot_retrieve(replace(plan, model=silent))
