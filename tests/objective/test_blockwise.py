import numpy as np
import pytest
import torch

import pair_cases
from pair_cases import KINDS, case, close, compare, dense_sigmoid, dense_softmax
from unicl.objective import blockwise, losses
from unicl.objective.blockwise import Side
from unicl.objective.plan import Tiling
from unicl.objective.targets import paired, same_key
from unicl.space import Embedding, Keys

TILES = (Tiling(), Tiling(rows=1, keep=0), Tiling(rows=3, keep=300), Tiling(rows=4, keep=10**6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(11, 8), (7, 10)])
def test_softmax_equals_the_dense_loss_in_value_and_every_gradient_at_any_tile(kind, sizes):
    rng = np.random.default_rng(0)
    for options in ({}, {"image_weight": 0.75}, {"smoothing": 0.1}, {"image_weight": 0.0, "smoothing": 0.2}):
        one = case(rng, kind, images=sizes[0], texts=sizes[1])
        wanted = compare(dense_softmax, one, **options)
        for tiling in TILES:
            assert close(compare(blockwise.softmax, one, tiling=tiling, **options), wanted), (options, tiling)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("cosine", "dot")])
def test_sigmoid_equals_the_dense_loss_in_value_and_every_gradient_at_any_tile(kind):
    rng = np.random.default_rng(1)
    for options in ({}, {"smoothing": 0.1}):
        for images, texts in ((9, 6), (5, 8)):
            one = case(rng, kind, images=images, texts=texts, scale=10.0, bias=-10.0)
            wanted = compare(dense_sigmoid, one, **options)
            for tiling in TILES:
                assert close(compare(blockwise.sigmoid, one, tiling=tiling, **options), wanted), (options, tiling)


@pytest.mark.parametrize("scale", [0.5, 39.0, 60.0, 100.0, 300.0])
def test_small_and_large_scales_take_other_ways_to_the_same_numbers(scale):
    one = case(np.random.default_rng(2), "typed", scale=scale)
    wanted = compare(dense_softmax, one)
    for tiling in TILES:
        assert close(compare(blockwise.softmax, one, tiling=tiling), wanted, tolerance=1e-10)


def test_a_scale_of_100_with_cosines_of_1_and_minus_1_stays_exact_in_float32():
    u = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(3)), dim=1)
    one = (*(Embedding(whole=v, features=v) for v in (torch.cat([u, -u]), torch.cat([u, u]))), paired(12))
    wide = [Embedding(whole=e.whole.double(), features=e.features) for e in one[:2]]
    own = compare(blockwise.softmax, (*one, torch.ones(12), 100.0, 0.0), tiling=Tiling(rows=5))
    exact = compare(dense_softmax, (*wide, one[2], torch.ones(12).double(), 100.0, 0.0))
    assert all(t.isfinite().all() for t in own[1])
    assert torch.allclose(own[0].double(), exact[0], rtol=1e-5)
    for a, b in zip(own[1], exact[1]):
        assert (a.double() - b).norm() <= 1e-4 * b.norm() + 1e-6


def test_rows_and_texts_without_a_positive_are_negatives_only():
    rng = np.random.default_rng(4)
    images, texts = Keys.single(torch.tensor([0, 0, 4, 5])), Keys.single(torch.tensor([5, 0, 9]))
    one = (*case(rng, "classes", images=4, texts=3)[:2], same_key(images, texts), torch.ones(3).double(), 5.0, 0.0)
    assert close(compare(blockwise.softmax, one, tiling=Tiling(rows=2)), compare(dense_softmax, one))


def test_the_order_of_the_batch_changes_nothing():
    rng = np.random.default_rng(5)
    images, texts, wanted, counts, scale, bias = case(rng, "typed")
    rows, columns = torch.tensor(rng.permutation(11)), torch.tensor(rng.permutation(8))
    dense = wanted.dense()[rows][:, columns]
    # The permuted target as an affinity of its own rows, so that no helper can undo the permutation.
    permuted = pair_cases.affinity(dense, torch.eye(8, dtype=torch.float64))
    moved = (images.select(rows), texts.select(columns), permuted, counts[columns], scale, bias)
    one = compare(blockwise.softmax, (images, texts, wanted, counts, scale, bias), tiling=Tiling(rows=3))
    two = compare(blockwise.softmax, moved, tiling=Tiling(rows=4))
    assert torch.allclose(one[0], two[0], rtol=1e-12)
    assert torch.allclose(one[1][0][rows], two[1][0], atol=1e-13)
    assert torch.allclose(one[1][1][columns], two[1][1], atol=1e-13)


def test_counts_equal_repeated_texts():
    images, texts, wanted, counts, scale, bias = case(np.random.default_rng(6), "typed")
    again = torch.repeat_interleave(torch.arange(8), counts.long())
    wide = pair_cases.affinity(wanted.dense()[:, again], torch.eye(len(again), dtype=torch.float64))
    for loss in (blockwise.softmax, blockwise.sigmoid):
        one = compare(loss, (images, texts, wanted, counts, scale, bias))
        two = compare(loss, (images, texts.select(again), wide, torch.ones(len(again)).double(), scale, bias))
        summed = torch.zeros_like(one[1][1]).index_add_(0, again, two[1][1])
        assert torch.allclose(one[0], two[0], rtol=1e-12)
        assert torch.allclose(one[1][0], two[1][0], atol=1e-12)
        assert torch.allclose(one[1][1], summed, atol=1e-12)


def test_the_gradient_of_the_scale_is_the_same_from_rows_and_from_columns():
    one = case(np.random.default_rng(7), "several")
    _, (rows, columns, log_scale, _) = compare(blockwise.softmax, one, tiling=Tiling(rows=2))
    # Both inner products are s times the scale's gradient, which is that of its logarithm.
    assert torch.allclose((one[0].whole * rows).sum(), log_scale, rtol=1e-10)
    assert torch.allclose((one[1].whole * columns).sum(), log_scale, rtol=1e-10)


@pytest.mark.parametrize("labels", [[0, 0, 1, 2, 1], [0, 1, 2, 3, 4], [3, 3, 3, 3, 3]])
def test_views_equal_the_dense_loss_without_a_row_itself(labels):
    rng = np.random.default_rng(8)
    whole = pair_cases.vectors(rng, 10)
    number = torch.tensor(labels).repeat(2)
    wanted = same_key(Keys.single(number + 1), Keys.single(number + 1))
    results = []
    for tiling in (None, *TILES):
        own = whole.clone().requires_grad_()
        scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
        if tiling is None:
            loss = losses.views(scale * own @ own.T, wanted.dense())
        else:
            side = Side(embedding=Embedding(whole=own, features=own), counts=torch.ones(10).double(), sizes=(10,))
            loss = blockwise.views(side, target=wanted, scale=scale, tiling=tiling)
        loss.backward()
        results.append((loss.detach(), [own.grad, scale.grad]))
    assert all(close(each, results[0]) for each in results[1:])


def test_bfloat16_operands_are_summed_in_float32():
    images, texts, wanted, counts, scale, bias = case(np.random.default_rng(9), "paired", images=12)
    single = [Embedding(whole=e.whole.float(), features=e.features) for e in (images, texts)]
    rounded = [Embedding(whole=e.whole.bfloat16().double(), features=e.features) for e in single]
    own = compare(blockwise.softmax, (*single, wanted, counts.float(), scale, bias), tiling=Tiling(operands="bf16"))
    exact = compare(dense_softmax, (*rounded, wanted, counts, scale, bias))
    assert own[0].dtype == torch.float32
    assert torch.allclose(own[0].double(), exact[0], rtol=1e-5)
    assert all((a.double() - b).norm() <= 1e-4 * b.norm() + 1e-6 for a, b in zip(own[1], exact[1]))


def test_autocast_leaves_the_loss_in_float32_and_no_grad_gives_the_value():
    one = case(np.random.default_rng(10), "classes")
    wanted = compare(blockwise.softmax, one)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert close(compare(blockwise.softmax, one), wanted)
    sides = [Side(embedding=e, counts=c, sizes=(len(c),)) for e, c in zip(one[:2], (torch.ones(11).double(), one[3]))]
    with torch.no_grad():
        value = blockwise.softmax(*sides, target=one[2], scale=torch.tensor(14.3, dtype=torch.float64))
    assert not value.requires_grad
    assert torch.allclose(value, wanted[0], rtol=1e-14)


def test_gradcheck_agrees():
    images, texts, wanted, counts, _, _ = case(np.random.default_rng(11), "typed", images=4, texts=3)

    def loss(u, v, scale, bias, function):
        sides = [
            Side(embedding=Embedding(whole=e, features=e), counts=c, sizes=(len(c),))
            for e, c in ((u, ones), (v, counts))
        ]
        return function(*sides, target=wanted, scale=scale, bias=bias, smoothing=0.1, tiling=Tiling(rows=2))

    ones = torch.ones(4).double()
    inputs = [t.clone().requires_grad_() for t in (images.whole, texts.whole, torch.tensor(3.0), torch.tensor(-1.0))]
    inputs = [t.detach().double().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(lambda *a: loss(*a, blockwise.sigmoid), inputs)
    assert torch.autograd.gradcheck(lambda u, v, s, b: loss(u, v, s, b, blockwise.softmax), inputs)


def test_the_backward_pass_may_be_taken_twice():
    one = case(np.random.default_rng(12), "classes")
    u = one[0].whole.clone().requires_grad_()
    sides = [Side(embedding=Embedding(whole=u, features=u), counts=torch.ones(11).double(), sizes=(11,))]
    sides.append(Side(embedding=one[1], counts=one[3], sizes=(8,)))
    value = blockwise.softmax(*sides, target=one[2], scale=torch.tensor(9.0).double(), tiling=Tiling(rows=4))
    first, second = (torch.autograd.grad(value, u, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
