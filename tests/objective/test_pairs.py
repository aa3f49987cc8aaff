"""How tiles are kept, ordered and rounded; what they add up to is in test_tiled.py and train/test_ranks.py."""

import numpy as np
import pytest
import torch

from pair_cases import case, close, compare, token_wise
from unicl.objective import tiled
from unicl.objective.blockwise import Side
from unicl.objective.pairs import in_order, travel_of
from unicl.objective.peers import ALONE
from unicl.objective.plan import Tiling
from unicl.objective.targets import paired
from unicl.similarity.tokenwise import tokenwise
from unicl.similarity.whole import cosine


def counted(score):
    """A similarity, and how large the tiles are that it is asked for."""
    asked = []

    def counting(images, texts):
        asked.append((len(images.whole), len(texts.whole), texts.parts.mask.sum(1).tolist()))
        return score(images, texts)

    return counting, asked


@pytest.fixture
def pairs():
    return case(np.random.default_rng(3), "classes", images=8, texts=12, parts=(4, 3))


def test_tiles_that_fit_are_scored_once_and_the_others_twice(pairs):
    calls = {}
    results = []
    for keep in (0, 1500, 1 << 20):
        score, asked = counted(tokenwise)
        results.append(compare(tiled.softmax, pairs, score=score, tiling=Tiling(rows=4, keep=keep)))
        calls[keep] = len(asked)
    assert (calls[0], calls[1 << 20]) == (12, 6)
    assert 6 < calls[1500] < 12
    assert close(results[0], results[1])
    assert close(results[0], results[2])


def test_a_similarity_that_holds_much_is_kept_less_often(pairs):
    calls = []
    for score in (tokenwise, token_wise):
        counting, asked = counted(score)
        compare(tiled.softmax, pairs, score=counting, tiling=Tiling(rows=4, keep=4000))
        calls.append(len(asked))
    assert calls[0] < calls[1]


def test_nothing_is_scored_twice_where_nobody_learns(pairs):
    score, asked = counted(tokenwise)
    with torch.no_grad():
        sides = [Side(embedding=e, counts=torch.ones(len(e.whole)).double(), sizes=(len(e.whole),)) for e in pairs[:2]]
        for loss in (tiled.softmax, tiled.sigmoid):
            loss(*sides, score=score, target=pairs[2], scale=torch.tensor(9.0), tiling=Tiling(rows=4))
    assert len(asked) == 12


def test_the_sigmoid_needs_each_tile_once(pairs):
    score, asked = counted(tokenwise)
    compare(tiled.sigmoid, pairs, score=score, tiling=Tiling(rows=4, keep=0))
    assert len(asked) == 6


def test_texts_of_like_length_share_a_tile(pairs):
    score, asked = counted(tokenwise)
    compare(tiled.softmax, pairs, score=score, tiling=Tiling(rows=4))
    lengths = [length for _, _, each in asked[:3] for length in each]
    assert lengths == sorted(lengths)
    assert lengths != pairs[1].parts.mask.sum(1).tolist()


def test_the_target_travels_with_its_texts():
    texts = case(np.random.default_rng(1), "paired", images=6, parts=(2, 4))[1]
    travel = travel_of(Side(embedding=texts, counts=torch.ones(6), sizes=(6,)), ALONE)
    assert travel.order is not None
    assert torch.equal(in_order(paired(6), travel).dense(), torch.eye(6)[:, travel.order])
    assert torch.equal(travel.mask, texts.parts.mask[travel.order])


def test_rounded_rows_are_what_everything_sees(pairs):
    def rounded(images, texts):
        return tokenwise(*(halved(each) for each in (images, texts)))

    def halved(each):
        parts = each.parts
        values = parts.values + (parts.values.bfloat16().to(parts.values) - parts.values).detach()
        return each.__class__(
            whole=each.whole, features=each.features, parts=parts.__class__(values=values, mask=parts.mask)
        )

    own = compare(tiled.softmax, pairs, score=tokenwise, tiling=Tiling(operands="bf16"))
    assert close(own, compare(tiled.softmax, pairs, score=rounded))
    assert not close(own, compare(tiled.softmax, pairs, score=tokenwise), tolerance=1e-5)


def test_a_similarity_that_looks_at_nothing_or_at_wholes_alone_gets_zeros(pairs):
    def blind(images, texts):
        table = images.whole.new_ones(len(images.whole), len(texts.whole))
        return table, table

    for score, learns in ((blind, False), (cosine, True)):
        _, gradients = compare(tiled.softmax, pairs, score=score, tiling=Tiling(rows=3))
        wholes, parts = (gradients[0], gradients[2]), (gradients[1], gradients[3])
        assert all((g.abs().sum() > 0) == learns for g in wholes)
        assert all(torch.count_nonzero(g) == 0 for g in parts)
