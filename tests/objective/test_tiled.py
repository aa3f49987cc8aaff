import numpy as np
import pytest
import torch

from pair_cases import KINDS, case, close, compare, dense_sigmoid, dense_softmax, dense_token_wise, token_wise
from unicl.objective import losses, tiled
from unicl.objective.plan import Tiling
from unicl.similarity.whole import cosine

TILES = (Tiling(), Tiling(rows=1), Tiling(rows=4))


@pytest.mark.parametrize("kind", KINDS)
def test_cosines_as_any_similarity_equal_the_dense_losses(kind):
    one = case(np.random.default_rng(0), kind)
    for tiling in TILES:
        for options in ({}, {"image_weight": 0.75, "smoothing": 0.1}):
            own = compare(tiled.softmax, one, score=cosine, tiling=tiling, **options)
            assert close(own, compare(dense_softmax, one, **options))
        if kind not in ("cosine", "dot"):
            own = compare(tiled.sigmoid, one, score=cosine, tiling=tiling, smoothing=0.1)
            assert close(own, compare(dense_sigmoid, one, smoothing=0.1))


@pytest.mark.parametrize("tiling", TILES)
def test_a_token_wise_similarity_only_has_to_score_a_tile(tiling):
    one = case(np.random.default_rng(1), "typed", parts=(4, 3))
    options = {"image_weight": 0.6, "smoothing": 0.1}
    own = compare(tiled.softmax, one, score=token_wise, tiling=tiling, **options)
    wanted = compare(dense_token_wise, one, **options)
    assert close(own, wanted)
    assert own[1][1].abs().sum() > 0


def test_a_loss_of_ones_own_gets_all_scores_at_once():
    one = case(np.random.default_rng(2), "classes")
    own = compare(tiled.dense, one, score=cosine, loss=losses.softmax)
    wanted = compare(dense_softmax, one)
    assert close((own[0], own[1][:3]), (wanted[0], wanted[1][:3]))
    first = compare(tiled.dense, one, score=cosine, loss=lambda scores, target, **_: (scores * target).mean())
    assert torch.allclose(first[0], ((14.3 * one[0].whole @ one[1].whole.T - 3) * one[2].dense()).mean())
