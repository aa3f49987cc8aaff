import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from evaluate_oracles import all_cosines, median, pessimistic_rank, units
from unicl.evaluate.retrieval import (
    Pairs,
    mean_recall,
    mean_reciprocal_rank,
    median_rank,
    pair_captions,
    rank_both_ways,
    recall,
)


def pairs_of(several):
    entries = torch.tensor([(i, t) for i, texts in enumerate(several) for t in sorted(texts)], dtype=torch.int64)
    entries = entries.view(-1, 2)
    return Pairs(images=entries[:, 0], texts=entries[:, 1])


def ranks_of(images, texts, several):
    """Both directions from the full matrix, in loops."""
    scores = all_cosines(images, texts)
    forth = [pessimistic_rank(row, own) for row, own in zip(scores, several, strict=True)]
    columns = [[row[t] for row in scores] for t in range(len(texts))]
    back = [pessimistic_rank(c, {i for i, own in enumerate(several) if t in own}) for t, c in enumerate(columns)]
    return forth, back


@st.composite
def crowds(draw):
    """Images and texts drawn from few directions, so that many score the same, and any pairs between them."""
    directions = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 2, 3], [-1, 0, 1]]), dim=-1)
    pick = st.lists(st.integers(0, 4), min_size=1, max_size=9)
    images, texts = draw(pick), draw(pick)
    own = st.sets(st.integers(0, len(texts) - 1), max_size=3)
    return directions[images], directions[texts], draw(st.lists(own, min_size=len(images), max_size=len(images)))


@settings(max_examples=80, deadline=None)
@given(crowds(), st.integers(1, 5))
def test_ranks_with_ties_are_those_of_the_full_matrix(case, tile):
    images, texts, several = case
    found = rank_both_ways(images, texts, pairs=pairs_of(several), tile=tile)
    assert (found.image_to_text.tolist(), found.text_to_image.tolist()) == ranks_of(images, texts, several)


def test_ranks_of_random_vectors_are_those_of_the_full_matrix():
    images, texts = units(40, 32, seed=0), units(70, 32, seed=1)
    several = [{k, (k * 7) % 70, 69} for k in range(40)]
    found = rank_both_ways(images, texts, pairs=pairs_of(several))
    assert (found.image_to_text.tolist(), found.text_to_image.tolist()) == ranks_of(images, texts, several)


@pytest.mark.parametrize("tile", [1, 13, 64])
def test_ranks_do_not_depend_on_the_size_of_the_tiles(tile):
    images, texts = units(90, 48, seed=2), units(130, 48, seed=3)
    texts[100:] = texts[:30]
    pairs = pairs_of([{k, 129 - k} for k in range(90)])
    whole, parts = (rank_both_ways(images, texts, pairs=pairs, tile=t) for t in (4096, tile))
    assert torch.equal(whole.image_to_text, parts.image_to_text)
    assert torch.equal(whole.text_to_image, parts.text_to_image)


def test_a_collapsed_model_finds_nothing():
    one = units(1, 16, seed=0)
    found = rank_both_ways(one.expand(12, -1), one.expand(12, -1), pairs=pairs_of([{k} for k in range(12)]))
    assert found.image_to_text.tolist() == [12] * 12
    assert mean_recall(found) == 0


def test_a_perfect_model_finds_everything_although_captions_are_shared():
    images = units(6, 16, seed=0)
    several = [{0, 1}, {0, 1}, {2}, {3}, {4}, {4}]
    texts = torch.stack([images[0], images[1], images[2], images[3], images[4]])
    found = rank_both_ways(images[[0, 0, 2, 3, 4, 4]], texts, pairs=pairs_of(several))
    assert found.image_to_text.tolist() == [1] * 6
    assert found.text_to_image.tolist()[2:] == [1, 1, 1]


def test_queries_without_an_answer_are_not_asked_but_stay_as_wrong_answers():
    images, texts = units(3, 8, seed=0), units(2, 8, seed=1)
    texts[1] = images[0]
    found = rank_both_ways(images, texts, pairs=pairs_of([{0}, set(), {0}]))
    assert found.image_to_text[1] == 0
    assert found.text_to_image[1] == 0
    assert found.image_to_text[0] == 2
    assert recall(found.text_to_image, 3) == 1


class Largest(TorchDispatchMode):
    """Watches every tensor that is made."""

    cells = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.cells = max(self.cells, made.numel())
        return made


def test_memory_stays_at_a_tile_of_scores():
    images, texts = units(1500, 4, seed=0), units(3000, 4, seed=1)
    pairs = pairs_of([{k} for k in range(1500)])
    with Largest() as watch:
        rank_both_ways(images, texts, pairs=pairs, tile=128)
    assert watch.cells == 128 * 128


def test_recall_median_and_reciprocal_rank_are_those_of_counting():
    ranks = [1, 4, 2, 11, 6, 1, 0, 9]
    asked = [r for r in ranks if r]
    tensor = torch.tensor(ranks)
    for k in (1, 5, 10):
        assert recall(tensor, k) == pytest.approx(sum(r <= k for r in asked) / len(asked))
    assert mean_reciprocal_rank(tensor) == pytest.approx(sum(1 / r for r in asked) / len(asked))
    assert median_rank(tensor) == median(asked)
    assert median_rank(torch.tensor([3, 8])) == 5.5
    assert math.isnan(median_rank(torch.tensor([0, 0])))


def test_equal_captions_are_one_text_for_all_their_images():
    texts, pairs = pair_captions([("a dog", "two dogs"), ("A  dog",), (), ("a cat", "a cat")])
    assert texts == ("a dog", "two dogs", "a cat")
    assert sorted(zip(pairs.images.tolist(), pairs.texts.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (3, 2)]


def test_no_captions_make_no_pairs():
    texts, pairs = pair_captions([(), ()])
    assert texts == ()
    assert pairs.images.shape == (0,)
