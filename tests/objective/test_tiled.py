import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import oracles
from pair_cases import KINDS, case, close, compare, dense_sigmoid, dense_softmax, dense_token_wise, token_wise
from unicl.objective import losses, pairs, tiled
from unicl.objective.plan import Tiling
from unicl.similarity.tokenwise import tokenwise
from unicl.similarity.whole import cosine
from unicl.space import Embedding

TILES = (Tiling(), Tiling(rows=1), Tiling(rows=4), Tiling(rows=4, keep=0), Tiling(rows=3, keep=3000))


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
    wanted = compare(dense_token_wise, one, **options)
    for score in (token_wise, tokenwise):
        own = compare(tiled.softmax, one, score=score, tiling=tiling, **options)
        assert close(own, wanted)
        assert own[1][1].abs().sum() > 0


def test_a_loss_of_ones_own_gets_all_scores_at_once():
    one = case(np.random.default_rng(2), "classes")
    own = compare(tiled.dense, one, score=cosine, loss=losses.softmax)
    wanted = compare(dense_softmax, one)
    assert close((own[0], own[1][:3]), (wanted[0], wanted[1][:3]))
    first = compare(tiled.dense, one, score=cosine, loss=lambda scores, target, **_: (scores * target).mean())
    assert torch.allclose(first[0], ((14.3 * one[0].whole @ one[1].whole.T - 3) * one[2].dense()).mean())


def test_a_loss_of_ones_own_gets_the_table_of_the_texts_if_it_takes_it_and_else_the_mean():
    one = case(np.random.default_rng(2), "classes", parts=(4, 3))
    own = compare(tiled.dense, one, score=tokenwise, loss=losses.softmax, image_weight=0.6)
    assert close(own, compare(tiled.softmax, one, score=tokenwise, image_weight=0.6))
    by_image, by_text = (14.3 * table - 3 for table in tokenwise(one[0], one[1]))
    single = compare(tiled.dense, one, score=tokenwise, loss=lambda scores, _, **__: scores.square().sum())
    assert torch.allclose(single[0], ((by_image + by_text) / 2).square().sum())


@pytest.mark.parametrize("tiling", TILES)
def test_a_pair_is_one_question_of_the_mean_of_both_tables_to_the_sigmoid(tiling):
    one = case(np.random.default_rng(4), "several", parts=(4, 3))
    own = compare(tiled.sigmoid, one, score=tokenwise, tiling=tiling, smoothing=0.1)
    assert close(own, compare(tiled.dense, one, score=tokenwise, loss=losses.sigmoid, smoothing=0.1))


def test_filips_loss_of_a_batch_is_that_of_the_loops():
    images, texts, target, counts, scale, bias = case(np.random.default_rng(6), "paired", images=7, parts=(5, 3))
    rows = [
        [[p.tolist() if real else None for p, real in zip(v, m)] for v, m in zip(e.parts.values, e.parts.mask)]
        for e in (images, texts)
    ]
    tables = [[[scale * x for x in row] for row in table] for table in oracles.token_wise(*rows)]
    one = (images, texts, target, torch.ones_like(counts), scale, bias)
    own = compare(tiled.softmax, one, score=tokenwise, tiling=Tiling(rows=2))[0].item()
    assert own == pytest.approx(oracles.filip(*tables), rel=1e-12)
    assert own != pytest.approx(oracles.filip(tables[1], tables[0]), rel=1e-3)


def test_the_scale_learns_the_same_wherever_scores_lie():
    images, texts, target, counts, *others = case(np.random.default_rng(8), "paired", images=40)
    single = [Embedding(whole=e.whole.float(), features=e.features.float()) for e in (images, texts)]

    def higher(images, texts):
        return tuple(table + 20 for table in cosine(images, texts))

    wanted = compare(tiled.softmax, (images, texts, target, counts, *others), score=cosine)[1][2]
    own = compare(tiled.softmax, (*single, target, counts.float(), *others), score=higher)[1][2]
    assert own.item() == pytest.approx(wanted.item(), rel=1e-5)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor made meanwhile has."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.most = max([self.most, *(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor))])
        return made


def test_no_tensor_is_larger_than_a_tile_or_the_batch(monkeypatch):
    monkeypatch.setattr(pairs, "ELEMENTS", 1 << 12)
    for rows, most in ((16, 1 << 12), (64, 64 * 12 * 6)):
        one = case(np.random.default_rng(0), "paired", images=rows, parts=(12, 8))
        with Largest() as largest:
            compare(tiled.softmax, one, score=tokenwise)
        assert largest.most <= most < rows * rows * 12 * 8
