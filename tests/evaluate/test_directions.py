from dataclasses import replace

import pytest
import torch

from evaluate_oracles import all_cosines, pessimistic_rank, rank_in_gallery, tiny_model
from unicl.evaluate.captions import run_retrieval
from unicl.evaluate.directions import (
    cannot_find_images,
    cannot_find_texts,
    run_image_to_image,
    run_image_to_text,
    run_text_to_image,
    run_text_to_text,
)
from unicl.evaluate.rated import Graded

STS, SIS, SITS = (False, False), (True, True), (False, True)


def rated(job, images, pairs):
    """The job with rated pairs: two things and a rating each."""
    first, second, ratings = zip(*pairs, strict=True)
    ratings = torch.tensor(ratings, dtype=torch.float64)
    table = Graded(name="t.csv", images=images, first=first, second=second, ratings=ratings)
    return replace(job, options=replace(job.options, rated=(table,)))


def ids_of(job):
    return [sample.id for sample in job.pictures.samples]


def test_across_directions_without_ratings_are_those_of_retrieval(job):
    both = run_retrieval(job)
    found = {score.key: score for score in (*run_image_to_text(job).scores, *run_text_to_image(job).scores)}
    for score in both.scores[1:]:
        key = score.key.replace("retrieval/image_to_text", "i2t").replace("retrieval/text_to_image", "t2i")
        assert (found[key].value, found[key].low, found[key].high) == (score.value, score.low, score.high)


def test_rated_pairs_are_right_across_from_cxcs_threshold_on(job, model):
    samples = job.pictures.samples
    pairs = [(samples[3].captions[1], samples[0].id, 3.0), (samples[4].captions[1], samples[1].id, 2.99)]
    changed = rated(job, SITS, pairs)
    texts = list(dict.fromkeys(c for s in samples for c in s.captions))
    scores = all_cosines(job.pictures.instances, model.embed_text(texts))
    right = [{texts.index(c) for c in s.captions} for s in samples]
    right[0].add(texts.index(samples[3].captions[1]))
    forth = run_image_to_text(changed)
    assert forth.ranks["image to text"] == tuple(pessimistic_rank(*each) for each in zip(scores, right, strict=True))
    back = run_text_to_image(changed)
    assert back.ranks["text to image"] == tuple(
        pessimistic_rank([row[t] for row in scores], {i for i, own in enumerate(right) if t in own})
        for t in range(len(texts))
    )
    assert forth.facts["rated pairs among the right"] == 1
    assert forth.facts["right"] == "an own caption or one that people rated 3 or higher"


def test_texts_find_the_other_captions_of_their_images_and_never_themselves(job, model):
    samples = job.pictures.samples
    texts = list(dict.fromkeys(c for s in samples for c in s.captions))
    vectors = model.embed_text(texts)
    right = [{texts.index(o) for s in samples if t in s.captions for o in s.captions if o != t} for t in texts]
    changed = rated(job, STS, [(texts[2], texts[9], 4.0), (texts[2], texts[11], 1.0), (texts[3], "not there", 5.0)])
    result = run_text_to_text(job)
    assert result.ranks["text to text"] == tuple(
        rank_in_gallery(vectors[t], vectors, right[t], t) for t in range(len(texts))
    )
    right[2].add(9)
    right[9].add(2)
    assert run_text_to_text(changed).ranks["text to text"] == tuple(
        rank_in_gallery(vectors[t], vectors, right[t], t) for t in range(len(texts))
    )


def test_images_find_those_of_their_label_else_of_their_caption_else_what_was_rated(job):
    vectors, samples = job.pictures.instances, job.pictures.samples
    same = [{j for j, o in enumerate(samples) if o.labels == s.labels and o != s} for s in samples]
    wanted = tuple(rank_in_gallery(vectors[k], vectors, same[k], k) for k in range(20))
    by_label = run_image_to_image(job)
    assert by_label.ranks["image to image"] == wanted
    assert by_label.facts["right"] == "an equal label"
    bare = tuple(replace(s, labels=()) for s in samples)
    by_caption = run_image_to_image(replace(job, pictures=replace(job.pictures, samples=bare)))
    assert by_caption.ranks["image to image"] == wanted
    assert by_caption.facts["right"] == "an equal caption"
    ids = ids_of(job)
    by_rating = run_image_to_image(rated(job, SIS, [(ids[0], ids[19], 2.5), (ids[1], ids[2], 2.4)]))
    ranks = by_rating.ranks["image to image"]
    assert [k for k, rank in enumerate(ranks) if rank] == [0, 19]
    assert ranks[0] == rank_in_gallery(vectors[0], vectors, {19}, 0)
    assert by_rating.facts["queries without a right answer, not asked"] == 18
    assert by_rating.scores[0].n == 2
    assert by_rating.facts["right"] == "an image that people rated 2.5 or higher"


def test_the_threshold_may_be_given(job):
    ids = ids_of(job)
    changed = rated(job, SIS, [(ids[0], ids[19], 0.7), (ids[1], ids[2], 0.4)])
    changed = replace(changed, options=replace(changed.options, positive=0.5))
    assert run_image_to_image(changed).scores[0].n == 2


def test_equal_vectors_of_a_pair_are_found_first(job):
    doubled = job.pictures.instances.clone()
    doubled[1::2] = doubled[::2]
    generator = torch.Generator().manual_seed(0)
    doubled = torch.nn.functional.normalize(torch.randn(10, 64, generator=generator), dim=1).repeat_interleave(2, 0)
    ids = ids_of(job)
    pairs = [(ids[k], ids[k + 1], 5.0) for k in range(0, 20, 2)]
    result = run_image_to_image(replace(rated(job, SIS, pairs), pictures=replace(job.pictures, instances=doubled)))
    assert set(result.ranks["image to image"]) == {1}
    assert result.mistakes == {"i2i": ()}
    assert result.scores[0].value == 1


def test_mistakes_show_queries_and_what_they_find_in_place_of_it(job):
    ids = ids_of(job)
    far = rated(job, SIS, [(ids[k], ids[19 - k], 5.0) for k in range(5)])
    for result, pictures in ((run_image_to_image(far), True), (run_text_to_text(job), False)):
        (several,) = result.mistakes.values()
        assert several
        for one in several:
            assert (one.image is not None) == (one.wanted.image is not None) == pictures
            assert one.wanted.right
            assert one.id not in [answer.text for answer in one.found]
            assert one.found[0].score >= one.found[1].score


def test_reasons_why_it_cannot_be_done(job):
    plan = job.plan
    assert cannot_find_texts(plan) is None
    assert cannot_find_images(plan) is None
    alone = tuple(replace(s, labels=(), captions=(f"only {k}",)) for k, s in enumerate(plan.samples))
    assert "no image has two captions" in cannot_find_texts(replace(plan, samples=alone))
    assert "no two images have a label or a caption in common" in cannot_find_images(replace(plan, samples=alone))
    silent = replace(plan, model=tiny_model(texts=False, recipe="supcon"))
    assert "no text tower" in cannot_find_texts(silent)
    assert cannot_find_images(silent) is None


@pytest.mark.parametrize("run", [run_image_to_text, run_text_to_image, run_text_to_text, run_image_to_image])
def test_numbers_lie_in_their_intervals_and_say_what_they_are(job, run):
    result = run(job)
    assert [s.key.partition("/")[2] for s in result.scores] == ["r1", "r5", "r10", "mrr", "median_rank"]
    assert all(s.low <= s.value + 1e-9 and s.value <= s.high + 1e-9 for s in result.scores)
    assert {"right", "recall@k", "ties"} <= result.facts.keys()
