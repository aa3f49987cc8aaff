from dataclasses import replace

import pytest
import torch

from evaluate_oracles import exact_cosine, parts_model, rank_correlation, tiny_model
from unicl import compare
from unicl.errors import UserError
from unicl.evaluate.pictures import embed_pictures
from unicl.evaluate.rated import Graded
from unicl.evaluate.similarity import cannot_correlate, run_similarity


def tables(job, size=30):
    ids = [sample.id for sample in job.pictures.samples]
    texts = [sample.captions[1] for sample in job.pictures.samples]
    first, second = ([k % 7 for k in range(size)], [(3 * k + 1) % 20 for k in range(size)])
    ratings = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5

    def made(name, images, left, right):
        sides = (tuple(left[k] for k in first), tuple(right[k] for k in second))
        return Graded(name=name, images=images, first=sides[0], second=sides[1], ratings=ratings)

    return (
        made("sts.csv", (False, False), texts, texts),
        made("sis.csv", (True, True), ids, ids),
        made("sits.csv", (False, True), texts, ids),
    )


def rated(job, several):
    return replace(job, options=replace(job.options, rated=tuple(several)))


def vectors_of(job, model, names, image):
    ids = [sample.id for sample in job.pictures.samples]
    return [job.pictures.instances[ids.index(n)] if image else model.embed_text([n])[0] for n in names]


def test_correlations_of_all_pairs_are_those_of_the_models_cosines(job, model):
    result = run_similarity(rated(job, tables(job)))
    numbers = {score.key: score for score in result.scores}
    for table in tables(job):
        sides = zip((table.first, table.second), table.images, strict=True)
        first, second = (vectors_of(job, model, names, image) for names, image in sides)
        scores = [float(exact_cosine(a, b)) for a, b in zip(first, second, strict=True)]
        found = numbers[f"similarity/{table.kind}/all_pairs"]
        assert found.value == pytest.approx(rank_correlation(scores, table.ratings.tolist()), abs=1e-6)
        assert found.low < found.value < found.high
        assert found.n == 30


def test_the_mean_is_that_of_the_tables_and_each_says_its_deviation(job):
    result = run_similarity(rated(job, tables(job)))
    numbers = {score.key: score.value for score in result.scores}
    drawn = [numbers[f"similarity/{kind}/spearman"] for kind in ("sts", "sis", "sits")]
    assert numbers["similarity/mean"] == pytest.approx(sum(drawn) / 3)
    assert result.facts["sis.csv, over draws"].startswith(f"{100 * drawn[1]:.1f} ± ")
    assert result.facts["sis.csv, queries (first column)"] == 7
    assert "half of the queries" in result.facts["Spearman over draws"]


def test_one_table_has_no_mean_and_two_of_a_kind_keep_their_names(job):
    sts, sis, _ = tables(job)
    assert [s.key for s in run_similarity(rated(job, [sis])).scores] == [
        "similarity/sis/spearman",
        "similarity/sis/all_pairs",
    ]
    keys = {s.key for s in run_similarity(rated(job, [sts, replace(sts, name="b.csv")])).scores}
    assert {"similarity/sts/sts.csv/spearman", "similarity/sts/b.csv/spearman"} <= keys


def test_ratings_that_are_the_cosines_correlate_perfectly(job):
    ids = [sample.id for sample in job.pictures.samples]
    sis = replace(tables(job)[1], first=tuple(ids[k % 20] for k in range(30)))
    first, second = ([ids.index(name) for name in side] for side in (sis.first, sis.second))
    cosines = [
        float(exact_cosine(job.pictures.instances[a], job.pictures.instances[b]))
        for a, b in zip(first, second, strict=True)
    ]
    result = run_similarity(rated(job, [replace(sis, ratings=torch.tensor(cosines, dtype=torch.float64))]))
    assert [score.value for score in result.scores] == pytest.approx([1.0, 1.0])


def test_a_model_of_parts_scores_texts_with_images_by_its_own_similarity(job):
    model = parts_model()
    pictures = embed_pictures(model, job.pictures.samples)
    sits = tables(job)[2]
    result = run_similarity(replace(rated(job, [sits]), model=model, pictures=pictures))
    ids = [sample.id for sample in pictures.samples]
    texts = list(dict.fromkeys(sits.first))
    images = model.encode_images([s.image for s in pictures.samples])
    by_image, by_text = compare.scores(model, images, model.encode_texts(texts), view="instances")
    both = (by_image + by_text) / 2
    wanted = [float(both[ids.index(b), texts.index(a)]) for a, b in zip(sits.first, sits.second, strict=True)]
    assert result.scores[1].value == pytest.approx(rank_correlation(wanted, sits.ratings.tolist()), abs=0.02)


def test_pairs_whose_image_cannot_be_read_are_left_out_and_counted(job):
    sis = tables(job)[1]
    broken = replace(sis, first=("broken.png", *sis.first[1:]))
    result = run_similarity(rated(job, [broken]))
    assert result.facts["sis.csv, pairs left out whose image cannot be read"] == 1
    assert result.scores[0].n == 29
    with pytest.raises(UserError, match="fewer than two rated pairs have images that can be read"):
        run_similarity(rated(job, [replace(sis, first=("broken.png",) * 30)]))


def test_reasons_why_it_cannot_be_done(job):
    assert "--rated" in cannot_correlate(job.plan)
    assert cannot_correlate(rated(job, tables(job)).plan) is None
    silent = tiny_model(texts=False, recipe="supcon")
    assert "no text tower" in cannot_correlate(replace(rated(job, tables(job)).plan, model=silent))
    assert cannot_correlate(replace(rated(job, tables(job)[1:2]).plan, model=silent)) is None
