"""FILIP's similarity against loops over parts, and what must not change it (specification card 3.10)."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import oracles
from unicl.objective import losses
from unicl.objective.targets import paired
from unicl.similarity.tokenwise import tokenwise
from unicl.similarity.whole import cosine
from unicl.space import Embedding, Parts

SIZES = [(5, 4, 7, 3), (3, 1, 2, 5), (1, 6, 1, 1), (4, 3, 5, 2)]


def column(values, mask=None):
    mask = torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else mask
    whole = values.new_zeros(len(values), values.shape[2])
    return Embedding(whole=whole, features=whole[:, :0], parts=Parts(values=values, mask=mask))


def random(rows, parts, *, seed, width=6, full=False):
    """Unit vectors; of several rows the first is one of pads only, and the second has one part."""
    rng = np.random.default_rng(seed)
    values = F.normalize(torch.tensor(rng.normal(size=(rows, parts, width))), dim=2)
    mask = torch.tensor(rng.random((rows, parts)) < 0.6)
    mask[0], mask[1:2] = rows == 1, torch.arange(parts) == parts // 2
    return column(values, torch.ones_like(mask) if full else mask)


def lists(embedding):
    """Rows of vectors for the oracle, None where they are padded."""
    return [
        [part if real else None for part, real in zip(row, mask, strict=True)]
        for row, mask in zip(embedding.parts.values, embedding.parts.mask.tolist(), strict=True)
    ]


def learning(embedding):
    parts = embedding.parts
    return column(parts.values.clone().requires_grad_(), parts.mask)


def gradients(score, images, texts):
    """Both tables, and the gradient of a weighted sum of them."""
    images, texts = learning(images), learning(texts)
    tables = score(images, texts)
    rng = np.random.default_rng(9)
    together = sum((table * torch.tensor(rng.normal(size=table.shape))).sum() for table in tables)
    learned = torch.autograd.grad(together, (images.parts.values, texts.parts.values), allow_unused=True)
    return [t.detach() for t in tables], [torch.zeros(()) if g is None else g for g in learned]


def by_loops(floor):
    def score(images, texts):
        tables = oracles.token_wise(lists(images), lists(texts), floor=floor)
        return [torch.stack([torch.stack([torch.as_tensor(x).double() for x in r]) for r in t]) for t in tables]

    return score


GOLDEN = column(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])), torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])


def test_the_golden_example():
    images, words = GOLDEN
    by_image, by_text = tokenwise(images, column(words))
    assert by_image.item() == pytest.approx(0.4)
    assert by_text.item() == pytest.approx(0.9)


def test_a_pad_that_counts_as_zero_lifts_what_is_below():
    images, words = GOLDEN
    padded = column(F.pad(words, (0, 0, 0, 1)), torch.tensor([[True, True, False]]))
    by_image, by_text = tokenwise(images, padded, pads="zero")
    assert by_image.item() == pytest.approx(0.6)
    assert by_text.item() == pytest.approx(0.9)
    assert tokenwise(images, column(words), pads="zero")[0].item() == pytest.approx(0.4)


@pytest.mark.parametrize("pads", ["exclude", "zero"])
@pytest.mark.parametrize(("rows", "parts", "others", "words"), SIZES)
def test_it_equals_loops_over_parts_in_value_and_gradient(pads, rows, parts, others, words):
    images, texts = random(rows, parts, seed=1), random(others, words, seed=2)
    tables, learned = gradients(lambda i, t: tokenwise(i, t, pads=pads), images, texts)
    wanted, exact = gradients(by_loops(pads == "zero"), images, texts)
    torch.testing.assert_close(tables, wanted, rtol=1e-12, atol=1e-14)
    for own, gradient in zip(learned, exact, strict=True):
        torch.testing.assert_close(own, gradient.expand_as(own), rtol=1e-12, atol=1e-14)


def test_one_part_on_either_side_is_the_cosine_and_the_loss_clips():
    images, texts = random(5, 1, seed=1, full=True), random(5, 1, seed=2, full=True)
    wholes = [Embedding(whole=e.parts.values[:, 0], features=e.whole) for e in (images, texts)]
    by_image, by_text = tokenwise(images, texts)
    torch.testing.assert_close(by_image, cosine(*wholes)[0])
    torch.testing.assert_close(by_text, by_image)
    own = losses.softmax(7 * by_image, paired(5).dense(), text_scores=7 * by_text)
    assert math.isclose(own.item(), oracles.clip((7 * cosine(*wholes)[0]).tolist()), rel_tol=1e-12)


@pytest.mark.parametrize("more", [1, 5])
def test_any_number_of_pads_changes_no_bit_whatever_stands_in_them(more):
    images, texts = random(5, 4, seed=1), random(7, 3, seed=2)
    exact = gradients(tokenwise, images, texts)
    longer = [
        column(F.pad(e.parts.values, (0, 0, 0, more), value=torch.nan), F.pad(e.parts.mask, (0, more)))
        for e in (images, texts)
    ]
    for e in longer:
        e.parts.values[~e.parts.mask] = torch.inf
    for changed in ((longer[0], texts), (images, longer[1]), longer):
        tables, learned = gradients(tokenwise, *changed)
        assert all(torch.equal(a, b) for a, b in zip(tables, exact[0], strict=True))
        for own, wanted in zip(learned, exact[1], strict=True):
            assert torch.equal(own[:, : wanted.shape[1]], wanted)
            assert torch.count_nonzero(own[:, wanted.shape[1] :]) == 0


def test_zero_pads_change_only_what_found_nothing_above_zero():
    images, texts = random(6, 2, seed=3, full=True), random(7, 2, seed=4, full=True)
    padded = column(F.pad(texts.parts.values, (0, 0, 0, 1)), F.pad(texts.parts.mask, (0, 1)))
    (plain, plain_text), (lifted, lifted_text) = tokenwise(images, texts), tokenwise(images, padded, pads="zero")
    below = torch.einsum("ipd,tqd->itpq", images.parts.values, texts.parts.values).amax(3).amin(2) < 0
    assert 0 < below.sum() < below.numel()
    assert torch.equal(lifted != plain, below)
    assert torch.equal(lifted_text, plain_text)


def test_two_of_every_part_are_as_one():
    images, texts = random(5, 4, seed=1), random(7, 3, seed=2)
    double = [
        column(e.parts.values.repeat_interleave(2, 1), e.parts.mask.repeat_interleave(2, 1)) for e in (images, texts)
    ]
    for left, right in ((double[0], texts), (images, double[1]), double):
        torch.testing.assert_close(tokenwise(left, right), tokenwise(images, texts), rtol=1e-13, atol=1e-15)


def test_the_order_of_parts_does_not_matter():
    images, texts = random(5, 4, seed=1), random(7, 3, seed=2)
    turned = [column(e.parts.values.flip(1), e.parts.mask.flip(1)) for e in (images, texts)]
    torch.testing.assert_close(tokenwise(*turned), tokenwise(images, texts), rtol=1e-13, atol=1e-15)


def test_a_row_without_a_real_part_scores_zero_and_learns_nothing():
    images, texts = random(4, 3, seed=1), random(5, 3, seed=2)
    for pads in ("exclude", "zero"):
        tables, learned = gradients(lambda i, t, pads=pads: tokenwise(i, t, pads=pads), images, texts)
        for table in tables:
            assert torch.count_nonzero(table[0]) == torch.count_nonzero(table[:, 0]) == 0
        assert all(torch.count_nonzero(g[0]) == 0 and g.isfinite().all() for g in learned)


def test_columns_without_rows_give_tables_without_rows():
    texts = random(3, 2, seed=2)
    nothing = column(torch.zeros(0, 4, 6).double())
    assert [t.shape for t in tokenwise(nothing, texts)] == [(0, 3), (0, 3)]
    assert [t.shape for t in tokenwise(texts, nothing)] == [(3, 0), (3, 0)]
    assert all(torch.count_nonzero(g) == 0 for g in gradients(tokenwise, nothing, texts)[1])
    bare = column(torch.zeros(2, 0, 6).double())
    assert tokenwise(bare, texts)[0].tolist() == [[0.0] * 3] * 2


def test_the_two_softmaxes_read_two_tables_and_a_turned_one_is_wrong():
    images, texts = random(5, 4, seed=1, full=True), random(5, 3, seed=2, full=True)
    first, second = learning(images), learning(texts)
    tables = [9 * table for table in tokenwise(first, second)]
    loss = losses.softmax(tables[0], paired(5).dense(), text_scores=tables[1])
    loss.backward()
    one, two = learning(images), learning(texts)
    looped = oracles.token_wise(lists(one), lists(two))
    wanted = oracles.filip(
        *([[9 * x for x in row] for row in table] for table in looped),
        log_sum_exp=lambda values: torch.stack(values).logsumexp(0),
    )
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(first.parts.values.grad, one.parts.values.grad, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(second.parts.values.grad, two.parts.values.grad, rtol=1e-10, atol=1e-13)
    for wrong in (tables[0].T, tables[0]):
        other = losses.softmax(tables[0], paired(5).dense(), text_scores=wrong)
        assert not math.isclose(other.item(), loss.item(), rel_tol=1e-3)


def test_half_precision_parts_are_summed_up_in_float32():
    images, texts = random(5, 4, seed=1), random(7, 3, seed=2)
    halved = [column(e.parts.values.bfloat16(), e.parts.mask) for e in (images, texts)]
    rounded = [column(e.parts.values.float(), e.parts.mask) for e in halved]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tables, learned = gradients(tokenwise, *halved)
    wanted, exact = gradients(tokenwise, *rounded)
    assert all(t.dtype == torch.float32 for t in tables)
    assert all(torch.equal(a, b) for a, b in zip(tables, wanted, strict=True))
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(learned, exact, strict=True))


def saved(function):
    """What the graph of a call keeps, beside what went in."""
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        function()
    return found


@pytest.mark.parametrize(("parts", "kind"), [(1, torch.uint8), (256, torch.uint8), (257, torch.int16)])
def test_the_graph_holds_the_parts_and_one_small_number_for_what_each_part_found(parts, kind):
    images, texts = learning(random(2, parts, seed=1, full=True)), learning(random(3, 2, seed=2, full=True))
    held = {embedding.parts.values.data_ptr() for embedding in (images, texts)}
    held |= {embedding.parts.mask.data_ptr() for embedding in (images, texts)}
    own = [t for t in saved(lambda: tokenwise(images, texts)) if t.data_ptr() not in held]
    assert sorted((t.numel(), t.dtype) for t in own) == sorted([(2 * parts * 3, torch.uint8), (2 * 3 * 2, kind)])


def test_far_places_are_found_too():
    values = torch.zeros(1, 300, 4).double()
    values[0, 299, 0] = 1.0
    images, texts = column(values), column(torch.tensor([[[1.0, 0, 0, 0]]]).double())
    _, learned = gradients(tokenwise, images, texts)
    exact = gradients(by_loops(False), images, texts)[1]
    assert learned[0][0, 299, 0] != 0
    torch.testing.assert_close(learned[1], exact[1])


def test_nobody_who_does_not_learn_pays_for_it():
    images, texts = learning(random(2, 3, seed=1)), learning(random(3, 2, seed=2))
    with torch.no_grad():
        assert saved(lambda: tokenwise(images, texts)) == []
