import math

import pytest
import torch

from oracles import attended_regions
from unicl.errors import UserError
from unicl.similarity.attended import attended
from unicl.space import Embedding, Parts
from unicl.use.explain.align import agreement, attention, grid, passed, products, spread


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_products_are_inner_products():
    places, words = random(5, 3), random(4, 3, seed=1)
    for q, word in enumerate(words.tolist()):
        for p, place in enumerate(places.tolist()):
            wanted = sum(x * y for x, y in zip(place, word, strict=True))
            assert float(products(places, words)[q, p]) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("words_first", [True, False])
@pytest.mark.parametrize("sharpness", [4.0, 0.0, 1.5])
def test_attention_is_that_of_the_similarity(words_first, sharpness):
    places, words = random(9, 6), random(4, 6, seed=1)
    options = {"sharpness": sharpness, "words_first": words_first}
    looks = attention(places, words, **options)
    torch.testing.assert_close(looks.sum(1), torch.ones(4, dtype=torch.float64))
    cosines = agreement(looks, places, words).tolist()
    for over in ("max", "sum", "mean"):
        wanted = attended_regions(places.tolist(), words.tolist(), over=over, **options)
        each = [math.exp(5 * cosine) for cosine in cosines]
        ours = {"max": 5 * max(cosines), "sum": math.log(sum(each)), "mean": math.log(sum(each) / len(each))}[over]
        assert ours == pytest.approx(wanted, abs=1e-9)
        sides = (
            Embedding(
                whole=part[:1], features=part[:1], parts=Parts(values=part[None], mask=torch.ones(1, len(part)).bool())
            )
            for part in (places, words)
        )
        assert float(attended(*sides, over=over, **options)[0]) == pytest.approx(ours, abs=1e-9)


def test_one_word_looks_everywhere_alike():
    looks = attention(random(9, 6), random(1, 6), sharpness=4.0, words_first=True)
    torch.testing.assert_close(looks, torch.full_like(looks, 1 / 9))


def test_a_place_matches_what_the_means_that_look_at_it_match():
    reduction = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]])
    matches = torch.tensor([[0.9, 0.3]])
    found = spread(matches, reduction)
    torch.testing.assert_close(found, torch.tensor([[(0.5 * 0.9 + 0.25 * 0.3) / 0.75, 0.9, 0.3]]))
    assert torch.isfinite(spread(matches, torch.zeros(2, 3))).all()


def test_attention_passed_on_to_places_still_sums_to_1():
    reduction = random(3, 8).softmax(1)
    looks = random(2, 3, seed=1).softmax(1)
    torch.testing.assert_close(passed(looks, reduction).sum(1), torch.ones(2, dtype=torch.float64))


def test_places_lie_row_by_row_behind_what_is_no_place():
    values = torch.arange(10.0)[None]
    assert grid(values, first=1).tolist() == [[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]


@pytest.mark.parametrize("count", [0, 2, 8])
def test_places_that_fill_no_square_cannot_be_shown(count):
    with pytest.raises(UserError, match="no square"):
        grid(torch.zeros(1, count))
