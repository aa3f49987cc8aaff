"""The losses of any similarity, a tile at a time: what `blockwise` does for cosines.

A similarity only has to score some images against some texts. Each process holds its images, and gathers the texts of
all, or lets blocks of them travel. How hard a pair is pulled together or pushed apart follows from its two scores and
from the sums over its row and its column, as for cosines (docs/objectives.md); what that means for the embeddings is
left to automatic differentiation of one tile. Tiles that fit into the budget keep their graphs for the backward pass,
the others are scored again: memory grows with the batch.
"""

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from unicl.objective.blockwise import Side, shares
from unicl.objective.pairs import Pairs, Tile, Wanted, Work, in_order, rows_of, travel_of
from unicl.objective.peers import ALONE, Peers, gathered, own_rows
from unicl.objective.plan import Pull, Tiling
from unicl.objective.targets import Target, yes_or_no
from unicl.similarity.find import Similarity
from unicl.space import Embedding, Parts


def softmax(
    images: Side,
    texts: Side,
    *,
    score: Similarity,
    target: Target,
    scale: Tensor,
    bias: Tensor | None = None,
    image_weight: float = 0.5,
    smoothing: float = 0.0,
    peers: Peers = ALONE,
    tiling: Tiling = Tiling(),
) -> Tensor:
    """`unicl.objective.losses.softmax`, each direction of its own table of scores (FILIP, section 3.1)."""
    del bias  # shifts every score alike
    rows, row_share = shares(target.from_texts(texts.counts, by="images"), images.counts, image_weight)
    turned = target.turned().from_texts(images.counts, by="images")
    columns, column_share = shares(turned, texts.counts, 1 - image_weight)
    pull = Pull(
        rows=(1 - smoothing) * row_share,
        columns=(1 - smoothing) * column_share,
        row_floor=smoothing * rows / texts.counts.sum(),
        column_floor=smoothing * columns / images.counts.sum(),
    )
    pairs = _pairs(images, texts, target, score=score, pull=pull, weights=(rows, columns), peers=peers, tiling=tiling)
    return _apply(_Softmax, pairs, images, texts, scale)


def sigmoid(
    images: Side,
    texts: Side,
    *,
    score: Similarity,
    target: Target,
    scale: Tensor,
    bias: Tensor | None = None,
    image_weight: float = 0.5,
    smoothing: float = 0.0,
    peers: Peers = ALONE,
    tiling: Tiling = Tiling(),
) -> Tensor:
    """`unicl.objective.losses.sigmoid`, of the mean of both tables of scores if they differ: a pair is one question."""
    del image_weight
    pairs = _pairs(images, texts, yes_or_no(target), score=score, peers=peers, tiling=tiling)
    number = max(sum(images.sizes), 1)
    pairs = replace(pairs, row_counts=pairs.row_counts / number)
    bias = scale.new_zeros(()) if bias is None else bias
    return _apply(_Sigmoid, pairs, images, texts, smoothing, scale, bias)


def dense(
    images: Side,
    texts: Side,
    *,
    loss: Callable[..., Tensor],
    score: Similarity,
    target: Target,
    scale: Tensor,
    bias: Tensor | None = None,
    image_weight: float = 0.5,
    smoothing: float = 0.0,
    peers: Peers = ALONE,
    tiling: Tiling = Tiling(),
) -> Tensor:
    """Any function of `unicl.objective.losses`' form, on all scores of all processes at once: for small batches.

    One that takes ``text_scores`` is given the texts' own table; another one gets the mean of both tables.
    """
    del tiling
    first = _gathered(images.embedding, images.sizes, peers)
    second = _gathered(texts.embedding, texts.sizes, peers)
    by_image, by_text = (s * scale if bias is None else s * scale + bias for s in score(first, second))
    options = {"counts": texts.counts, "image_weight": image_weight, "smoothing": smoothing}
    wanted = target.dense().to(by_image)
    if "text_scores" in signature(loss).parameters:
        return loss(by_image, wanted, text_scores=by_text, **options)
    return loss((by_image + by_text) / 2, wanted, **options)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, scale: Tensor, *rows: Tensor) -> Tensor:
        work, factor = Work(pairs, rows), scale.detach().to(rows[0])
        row_log, column_log, pulled = _logarithms(work, factor, keep=pairs.learns and any(ctx.needs_input_grad))
        assert pairs.weights is not None
        weights, logs = (t[pairs.own_columns].double() for t in (pairs.weights[1], column_log))
        own = pairs.weights[0].double() @ row_log.double() + weights @ logs - pulled
        ctx.work = work
        ctx.save_for_backward(row_log, column_log, scale.detach())
        return pairs.peers.sum(own).to(rows[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        row_log, column_log, scale = ctx.saved_tensors
        work: Work = ctx.work
        assert work.pairs.weights is not None
        factor, inner = scale.to(row_log), row_log.new_zeros((), dtype=torch.float64)
        counts = work.pairs.row_counts.log(), work.pairs.column_counts.log()
        row_part, column_part = (
            w.log() - log for w, log in zip(work.pairs.weights, (row_log, column_log), strict=True)
        )
        # What is added to all scores of a row or column changes no loss; without it, less cancels out of the scale's.
        row_level, column_level = (torch.where(log.isfinite(), log / factor, 0) for log in (row_log, column_log))
        g = grads[0] * work.pairs.peers.size

        def push(own: slice, at: slice, wanted: Wanted, tile: Tile) -> tuple[Tensor, Tensor]:
            by_image = (factor * tile.by_image + counts[1][at]).add_(row_part[own, None]).exp_()
            by_text = (factor * tile.by_text + counts[0][own, None]).add_(column_part[at]).exp_()
            pull_image, pull_text = _pulls(work.pairs, own, at, wanted)
            by_image, by_text = by_image.sub_(pull_image), by_text.sub_(pull_text)
            inner.add_(_inner(by_image, tile.by_image - row_level[own, None]))
            inner.add_(_inner(by_text, tile.by_text - column_level[at]))
            return by_image.mul_(g * factor), by_text.mul_(g * factor)

        images, texts = work.gradients(push)
        return None, (g * inner).to(scale), *images, *texts


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, smoothing: float, scale: Tensor, bias: Tensor, *rows: Tensor) -> Tensor:
        work = Work(pairs, rows)
        factor, shift = (t.detach().to(rows[0]) for t in (scale, bias))
        sums = torch.zeros(3, dtype=torch.float64, device=rows[0].device)

        def push(own: slice, at: slice, wanted: Wanted, tile: Tile) -> tuple[Tensor, Tensor]:
            plain = (tile.by_image + tile.by_text) / 2
            scores = factor * plain + shift
            yes = wanted[0] * (1 - smoothing) + smoothing / 2
            # softplus itself turns into the identity at 20 and loses digits.
            each = yes * F.logsigmoid(scores) + (1 - yes) * F.logsigmoid(-scores)
            weights = pairs.row_counts[own, None] * pairs.column_counts[at]
            pushed = (scores.sigmoid() - yes) * weights
            sums.sub_(torch.stack([(each * weights).sum(), -(pushed * plain).sum(), -pushed.sum()]))
            half = pushed * (factor / 2)
            return half, half

        ctx.size = pairs.peers.size
        learned: tuple[Tensor, ...] = ()
        if pairs.learns and any(ctx.needs_input_grad):
            images, texts = work.gradients(push)
            learned = (*images, *texts)
        else:
            for place in work.scored(keep=False):
                push(*place)
        ctx.save_for_backward(sums[1].to(scale), sums[2].to(bias), *learned)
        return pairs.peers.sum(sums[0]).to(rows[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g = grads[0] * ctx.size
        return None, None, *(t * g.to(t) for t in ctx.saved_tensors)


def _logarithms(work: Work, scale: Tensor, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithms of the sums over each row and, over all processes, each column; and the sum of what is pulled."""
    pairs = work.pairs
    row_counts, column_counts = pairs.row_counts.log(), pairs.column_counts.log()
    row_log = torch.full_like(row_counts, -torch.inf)
    column_log = torch.full_like(column_counts, -torch.inf)
    pulled = scale.new_zeros((), dtype=torch.float64)
    for own, at, wanted, tile in work.scored(keep=keep):
        by_image, by_text = scale * tile.by_image, scale * tile.by_text
        row_log[own] = torch.logaddexp(row_log[own], torch.logsumexp(by_image + column_counts[at], 1))
        column_log[at] = torch.logaddexp(column_log[at], torch.logsumexp(by_text + row_counts[own, None], 0))
        pull_image, pull_text = _pulls(pairs, own, at, wanted)
        pulled += _inner(pull_image, by_image) + _inner(pull_text, by_text)
    if pairs.peers.size > 1:
        highest = pairs.peers.max(column_log)
        column_log = highest + pairs.peers.sum((column_log - highest).exp()).log()
    return row_log, column_log, pulled


def _inner(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dtype=torch.float64)


def _pulls(pairs: Pairs, own: slice, at: slice, wanted: Wanted) -> tuple[Tensor, Tensor]:
    """How hard each pair of a tile is pulled together by its image's softmax, and by its text's."""
    pull = pairs.pull
    assert pull is not None
    assert pull.columns is not None
    assert pull.row_floor is not None
    assert pull.column_floor is not None
    by_image = (wanted[0] * pull.rows[own, None] + pull.row_floor[own, None]) * pairs.column_counts[at]
    by_text = (wanted[1] * pull.columns[at] + pull.column_floor[at]) * pairs.row_counts[own, None]
    return by_image, by_text


def _pairs(
    images: Side,
    texts: Side,
    target: Target,
    *,
    score: Similarity,
    peers: Peers,
    tiling: Tiling,
    pull: Pull | None = None,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Pairs:
    """The comparison as this process sees it; ``pull`` and ``weights`` are of all rows in their own order."""
    own, travel = own_rows(images.sizes, rank=peers.rank), travel_of(texts, peers)
    order = slice(None) if travel.everyones is None else travel.everyones
    if pull is not None and pull.columns is not None and pull.row_floor is not None and pull.column_floor is not None:
        pull = Pull(
            rows=pull.rows[own],
            columns=pull.columns[order],
            row_floor=pull.row_floor[own],
            column_floor=pull.column_floor[order],
        )
    parts = images.embedding.parts
    return Pairs(
        score=score,
        target=in_order(target.near(own), travel),
        sizes=texts.sizes,
        row_counts=images.counts[own],
        column_counts=texts.counts[order],
        image_mask=None if parts is None else parts.mask,
        travel=travel,
        peers=peers,
        tiling=tiling,
        # Inside a function of one's own, torch has gradients switched off.
        learns=torch.is_grad_enabled(),
        pull=pull,
        weights=None if weights is None else (weights[0][own], weights[1][order]),
    )


def _apply(
    function: type[_Softmax] | type[_Sigmoid], pairs: Pairs, images: Side, texts: Side, *numbers: Tensor | float
) -> Tensor:
    rows = (*rows_of(images), *rows_of(texts))
    with torch.autocast(rows[0].device.type, enabled=False):
        loss: Tensor = function.apply(pairs, *numbers, *rows)
    return loss


def _gathered(embedding: Embedding, sizes: tuple[int, ...], peers: Peers) -> Embedding:
    """The rows of all processes; parts are padded to the most that a row of any process has."""
    whole = gathered(embedding.whole, sizes=sizes, peers=peers)
    parts = embedding.parts
    if parts is not None:
        parts = parts.padded(int(peers.max(torch.tensor(parts.mask.shape[1], device=whole.device))))
        mask = peers.gather(parts.mask.to(torch.uint8), sizes=sizes) > 0
        parts = Parts(values=gathered(parts.values, sizes=sizes, peers=peers), mask=mask)
    return Embedding(whole=whole, features=whole[:, :0], parts=parts)
