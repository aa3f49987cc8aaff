"""The losses of cosines in memory that grows with the batch and not with its square, on one process or many.

Scores are made a tile at a time and forgotten, or kept as far as a budget allows; the backward pass makes them again.
What is positive never meets a tile: it is a sum over keys (docs/objectives.md, "Blockwise"). Each process holds the
rows of one column, and gathers the other, smaller one, or lets its blocks travel.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from unicl.objective.peers import ALONE, Peers, own_rows
from unicl.objective.plan import Plan, Pull, Tiling, pull_columns, pull_rows
from unicl.objective.targets import Target, yes_or_no
from unicl.objective.tile import Tile, exponentials, log_sums, product, weighted
from unicl.space import Embedding

ELEMENTS = 1 << 23
GPU_ELEMENTS = 1 << 26
"""Scores in one tile: few enough for a processor's cache, enough to keep a GPU busy."""
LONGEST = 1024
"""Rows of a tile on a processor; products of more are no faster (docs/log.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One column of a comparison: this process's rows, and the counts and numbers of the rows of all processes."""

    embedding: Embedding
    counts: Tensor
    sizes: tuple[int, ...]

    @property
    def vectors(self) -> Tensor:
        """``(N, D)``: the whole vectors of this process's rows, in float32 at least."""
        whole = self.embedding.whole
        return whole.to(torch.promote_types(whole.dtype, torch.float32))


def softmax(
    images: Side,
    texts: Side,
    *,
    target: Target,
    scale: Tensor,
    bias: Tensor | None = None,
    image_weight: float = 0.5,
    smoothing: float = 0.0,
    peers: Peers = ALONE,
    tiling: Tiling = Tiling(),
) -> Tensor:
    """`unicl.objective.losses.softmax` of ``scale`` times the cosines: the same number and the same gradients.

    The gradient is that of this process's vectors times the number of processes, see `unicl.objective.peers.total`.
    """
    del bias  # shifts every score alike
    if sum(images.sizes) < sum(texts.sizes):
        images, texts, target, image_weight = texts, images, target.turned(), 1 - image_weight
    rows, row_share = shares(target.from_texts(texts.counts, by="images"), images.counts, image_weight)
    turned = target.turned().from_texts(images.counts, by="images")
    columns, column_share = shares(turned, texts.counts, 1 - image_weight)
    pull = Pull(
        rows=(1 - smoothing) * row_share,
        columns=(1 - smoothing) * column_share,
        row_floor=smoothing * rows / texts.counts.sum() if smoothing else None,
        column_floor=smoothing * columns / images.counts.sum() if smoothing else None,
    )
    plan = _plan(images, texts, target, pull=pull, peers=peers, tiling=tiling)
    plan = replace(plan, row_weights=rows[plan.own], column_weights=columns)
    return _apply(_Softmax, plan, images, texts, scale)


def views(stacked: Side, *, target: Target, scale: Tensor, peers: Peers = ALONE, tiling: Tiling = Tiling()) -> Tensor:
    """`unicl.objective.losses.views` of ``scale`` times the cosines of the stacked views, each row but itself."""
    mass = target.from_texts(stacked.counts) - 1
    rows = (mass > 0).to(mass) / max(len(mass), 1)
    plan = _plan(stacked, stacked, target, pull=Pull(rows=rows / _nonzero(mass)), peers=peers, tiling=tiling)
    plan = replace(plan, row_weights=rows[plan.own], itself=True)
    return _apply(_Softmax, plan, stacked, stacked, scale)


def sigmoid(
    images: Side,
    texts: Side,
    *,
    target: Target,
    scale: Tensor,
    bias: Tensor | None = None,
    image_weight: float = 0.5,
    smoothing: float = 0.0,
    peers: Peers = ALONE,
    tiling: Tiling = Tiling(),
) -> Tensor:
    """`unicl.objective.losses.sigmoid` of ``scale`` times the cosines plus ``bias``: the same number and gradients."""
    del image_weight
    number, target = max(sum(images.sizes), 1), yes_or_no(target)
    if sum(images.sizes) < sum(texts.sizes):
        images, texts, target = texts, images, target.turned()
    rows = images.counts / number
    pull = Pull(rows=(1 - smoothing) * rows, row_floor=smoothing / 2 * rows if smoothing else None)
    plan = _plan(images, texts, target, pull=pull, peers=peers, tiling=tiling)
    bias = scale.new_zeros(()) if bias is None else bias
    return _apply(_Sigmoid, replace(plan, row_weights=rows[plan.own]), images, texts, scale, bias)


def shares(mass: Tensor, counts: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The weight of each row's logarithm, and that over the mass of its positives; rows without any have none."""
    held = counts * (mass > 0)
    weights = weight * held / _nonzero(held.sum())
    return weights, weights / _nonzero(mass)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, plan: Plan) -> Tensor:
        work = _Work(plan, rows, columns, float(scale))
        pulled, row_log, column_log = work.logarithms(keep=plan.learns and any(ctx.needs_input_grad))
        own = plan.row_weights.double() @ row_log.double() - scale.double() * _inner(work.rows, pulled)
        if plan.column_weights is not None:
            weights, logs = (t[plan.own_columns].double() for t in (plan.column_weights, column_log))
            own = own + weights @ logs
        ctx.work = work
        ctx.save_for_backward(pulled, row_log, column_log, scale.detach())
        return plan.peers.sum(own).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pulled, row_log, column_log, scale = ctx.saved_tensors
        rows, columns = ctx.work.pushed(row_log, column_log)
        rows -= pulled
        g = grads[0] * ctx.work.plan.peers.size
        inner = _inner(ctx.work.rows, rows)
        return rows.mul_(g * scale), columns.mul_(g * scale), (g * inner).to(scale), None


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, plan: Plan) -> Tensor:
        work = _Work(plan, rows, columns, float(scale))
        wanted = plan.learns and any(ctx.needs_input_grad)
        pulled, mass = work.pulled(), plan.pull.rows @ plan.target.from_texts(plan.column_counts)
        if plan.pull.row_floor is not None:
            mass = mass + plan.pull.row_floor.sum() * plan.column_counts.sum()
        own, pushed, column_gradient, bias_gradient = work.logistic(float(bias), gradient=wanted)
        own = own - scale.double() * _inner(work.rows, pulled) - bias.double() * mass.double()
        ctx.work = work
        ctx.save_for_backward(pushed.sub_(pulled), column_gradient, bias_gradient - mass, scale.detach())
        return plan.peers.sum(own).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, bias, scale = ctx.saved_tensors
        g = grads[0] * ctx.work.plan.peers.size
        inner = _inner(ctx.work.rows, rows)
        return rows * (g * scale), columns * (g * scale), (g * inner).to(scale), (g * bias).to(scale), None


class _Work:
    """The passes over the tiles of one comparison, and the scores that are kept from the first to the second."""

    def __init__(self, plan: Plan, rows: Tensor, columns: Tensor, scale: float) -> None:
        self.plan, self.scale = plan, scale
        self.operand = torch.bfloat16 if plan.tiling.operands == "bf16" else rows.dtype
        # Rounded once: the sums over positives must see the numbers that the tiles see.
        self.rows, self.columns = (t.detach().to(self.operand).to(rows.dtype) for t in (rows, columns))
        lengths = [t.norm(dim=1).max() if len(t) else t.new_zeros(()) for t in (self.rows, self.columns)]
        longest = plan.peers.max(torch.stack(lengths))
        self.bound = abs(scale) * float(longest.prod())
        self.everybodys: Tensor | None = None
        self.kept: dict[tuple[int, int], Tile] = {}
        self.room = plan.tiling.keep
        self.spare: dict[str, Tensor] = {}

    def logarithms(self, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """What pulls each row, and the logarithms of the sums over each row and, over all processes, each column."""
        plan = self.plan
        pulled = torch.zeros_like(self.rows)
        row_log = self.rows.new_full((len(self.rows),), -torch.inf)
        column_log = self.rows.new_full((len(plan.column_counts),), -torch.inf)
        for hop, place, vectors in self.blocks():
            pull_rows(pulled, plan, columns=vectors, place=place)
            for own, tile in self.tiles(hop, place, vectors, keep=keep):
                counts = plan.row_counts[own], plan.column_counts[place]
                by_row, by_column = log_sums(tile, *counts, both=plan.column_weights is not None)
                row_log[own] = torch.logaddexp(row_log[own], by_row)
                if by_column is not None:
                    column_log[place] = torch.logaddexp(column_log[place], by_column)
        if plan.column_weights is not None and plan.peers.size > 1:
            highest = plan.peers.max(column_log)
            column_log = highest + plan.peers.sum((column_log - highest).exp()).log()
        return pulled, row_log, column_log

    def pulled(self) -> Tensor:
        """``(M, D)``: what pulls each row of this process."""
        pulled = torch.zeros_like(self.rows)
        for _, place, vectors in self.blocks():
            pull_rows(pulled, self.plan, columns=vectors, place=place)
        return pulled

    def pushed(self, row_log: Tensor, column_log: Tensor) -> tuple[Tensor, Tensor]:
        """What pushes each row of this process, and the gradient of its columns over the scale."""
        plan, rows = self.plan, torch.zeros_like(self.rows)
        left = _times(self.rows, plan.row_counts)
        row_part = (plan.row_weights / plan.row_counts).log() - row_log
        column_part = None
        if plan.column_weights is not None:
            column_part = (plan.column_weights / plan.column_counts).log() - column_log

        def part(hop: int, place: slice, vectors: Tensor) -> Tensor:
            counts = plan.column_counts[place]
            right, result = _times(vectors, counts), torch.zeros_like(vectors)
            for own, tile in self.tiles(hop, place, vectors, keep=False):
                columns = None if column_part is None else column_part[place]
                push = weighted(tile, row_part[own], columns, spare=self.buffer("spare", tile.values.shape))
                self.spread(push, rows[own], result, left=left[own], right=right)
            pull_columns(_times(result, counts, out=result), plan, rows=self.rows, place=place)
            return result

        columns = self.collect(part)
        # The graph lives on while the towers learn; what can be made again should not.
        self.spare, self.everybodys = {}, None
        return _times(rows, plan.row_counts, out=rows), columns

    def logistic(self, bias: float, *, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The sum of softplus over all pairs, what pushes rows, the gradient of columns over the scale, of the bias."""
        plan, rows = self.plan, torch.zeros_like(self.rows)
        left, weights = self.rows * plan.row_weights[:, None], plan.row_weights
        sums = torch.zeros(2, dtype=torch.float64, device=rows.device)

        def part(_: int, place: slice, vectors: Tensor) -> Tensor:
            counts = plan.column_counts[place]
            right, result = _times(vectors, counts), torch.zeros_like(vectors)
            for own, scores in self.scores(vectors):
                scores += bias
                # softplus itself turns into the identity at 20 and loses digits.
                sums[0] -= (weights[own] @ (F.logsigmoid(-scores) @ counts)).double()
                if gradient:
                    push = scores.sigmoid_()
                    sums[1] += (weights[own] @ (push @ counts)).double()
                    self.spread(push, rows[own], result, left=left[own], right=right)
            if gradient:
                pull_columns(_times(result, counts, out=result), plan, rows=self.rows, place=place)
            return result

        columns = self.collect(part)
        self.spare, self.everybodys = {}, None
        return sums[0], rows.mul_(weights[:, None]), columns, sums[1]

    def spread(self, push: Tensor, rows: Tensor, columns: Tensor, *, left: Tensor, right: Tensor) -> None:
        """Add ``push @ right`` to the rows and ``pushᵀ @ left`` to the columns."""
        if self.operand == torch.bfloat16 and push.device.type == "cuda":
            push, left, right = (t.to(self.operand) for t in (push, left, right))
            rows += product(push, right)
            columns += product(push.T, left)
        else:
            rows.addmm_(push, right)
            columns.addmm_(push.T, left)

    def blocks(self) -> Iterator[tuple[int, slice, Tensor]]:
        """Blocks of columns: all at once, gathered; or each process's in turn, while they travel in a ring."""
        plan, peers = self.plan, self.plan.peers
        if not self.ring:
            if self.everybodys is None:
                self.everybodys = peers.gather(self.columns, sizes=plan.column_sizes)
            yield 0, slice(0, len(self.everybodys)), self.everybodys
            return
        moving = _padded(self.columns, max(plan.column_sizes))
        for hop in range(peers.size):
            owner = (peers.rank - hop) % peers.size
            yield hop, own_rows(plan.column_sizes, rank=owner), moving[: plan.column_sizes[owner]]
            if hop + 1 < peers.size:
                moving = peers.pass_on(moving)

    def collect(self, part: Callable[[int, slice, Tensor], Tensor]) -> Tensor:
        """The sum over all processes of what ``part`` makes of each block, for this process's own columns."""
        plan, peers = self.plan, self.plan.peers
        if not self.ring:
            made = [part(hop, place, vectors) for hop, place, vectors in self.blocks()]
            return peers.scatter_sum(made[0], sizes=plan.column_sizes)
        longest = max(plan.column_sizes)
        moving = self.columns.new_zeros(longest, self.columns.shape[1])
        for hop, place, vectors in self.blocks():
            moving[: place.stop - place.start] += part(hop, place, vectors)
            moving = peers.pass_on(moving)
        return moving[: len(self.columns)].clone()

    @property
    def ring(self) -> bool:
        return self.plan.tiling.exchange == "ring" and self.plan.peers.size > 1

    def scores(self, vectors: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Tiles of scores in a buffer that the next tile overwrites."""
        right = vectors.to(self.operand).T
        for start in range(0, len(self.rows), self.step(len(vectors))):
            own = slice(start, min(start + self.step(len(vectors)), len(self.rows)))
            out = self.buffer("scores", (own.stop - start, len(vectors)))
            yield own, product(self.rows[own].to(self.operand), right, scale=self.scale, out=out)

    def tiles(self, hop: int, place: slice, vectors: Tensor, *, keep: bool) -> Iterator[tuple[slice, Tile]]:
        """Tiles of exponentials: the ones that were kept, the others anew; the first are kept if there is room."""
        right, step = vectors.to(self.operand).T, self.step(len(vectors))
        for number, start in enumerate(range(0, len(self.rows), step)):
            own = slice(start, min(start + step, len(self.rows)))
            tile = self.kept.pop((hop, number), None)
            if tile is None:
                shape = (own.stop - start, len(vectors))
                room = shape[0] * shape[1] * self.rows.element_size()
                stays = keep and room <= self.room
                out = self.rows.new_empty(shape) if stays else self.buffer("scores", shape)
                made = product(self.rows[own].to(self.operand), right, scale=self.scale, out=out)
                tile = exponentials(made, bound=self.bound, itself=self.itself(own, place))
                if stays:
                    self.kept[hop, number] = tile
                    self.room -= room
            yield own, tile

    def itself(self, own: slice, place: slice) -> tuple[Tensor, Tensor] | None:
        """Where in a tile rows meet the columns of their own number, if those are left out."""
        if not self.plan.itself:
            return None
        rows = torch.arange(own.stop - own.start, device=self.rows.device)
        columns = rows + self.plan.own_columns.start + own.start - place.start
        inside = (columns >= 0) & (columns < place.stop - place.start)
        return rows[inside], columns[inside]

    def step(self, columns: int) -> int:
        """Rows of a tile."""
        if self.plan.tiling.rows is not None:
            return self.plan.tiling.rows
        if self.rows.device.type == "cuda":
            return max(GPU_ELEMENTS // max(columns, 1), 64)
        return min(max(ELEMENTS // max(columns, 1), 64), LONGEST)

    def buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Memory that tiles use one after the other."""
        size = shape[0] * shape[1]
        if name not in self.spare or len(self.spare[name]) < size:
            self.spare[name] = self.rows.new_empty(size)
        return self.spare[name][:size].view(shape)


def _apply(
    function: type[_Softmax] | type[_Sigmoid], plan: Plan, rows: Side, columns: Side, *numbers: Tensor
) -> Tensor:
    with torch.autocast(rows.vectors.device.type, enabled=False):
        loss: Tensor = function.apply(rows.vectors, columns.vectors, *numbers, plan)
    return loss


def _plan(rows: Side, columns: Side, target: Target, *, pull: Pull, peers: Peers, tiling: Tiling) -> Plan:
    own = own_rows(rows.sizes, rank=peers.rank)
    floor = None if pull.row_floor is None else pull.row_floor[own]
    return Plan(
        target=target.near(own),
        own=own,
        own_columns=own_rows(columns.sizes, rank=peers.rank),
        column_sizes=columns.sizes,
        row_counts=rows.counts[own],
        column_counts=columns.counts,
        pull=replace(pull, rows=pull.rows[own], row_floor=floor),
        row_weights=rows.counts[own],
        column_weights=None,
        peers=peers,
        tiling=tiling,
        # Inside a function of one's own, torch has gradients switched off.
        learns=torch.is_grad_enabled(),
    )


def _times(rows: Tensor, counts: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Rows times their counts; the rows themselves where each counts once."""
    return rows if bool((counts == 1).all()) else torch.mul(rows, counts[:, None], out=out)


def _inner(left: Tensor, right: Tensor) -> Tensor:
    inner: Tensor = torch.linalg.vecdot(left, right)
    return inner.sum(dtype=torch.float64)


def _nonzero(mass: Tensor) -> Tensor:
    return torch.where(mass > 0, mass, torch.ones_like(mass))


def _padded(rows: Tensor, size: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])
