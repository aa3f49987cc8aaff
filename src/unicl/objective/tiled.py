"""The losses of any similarity, a tile at a time: what `blockwise` does for cosines, by automatic differentiation.

A similarity only has to score some images against some texts. The tiles' scores are forgotten after their sums are
taken, and made again in the backward pass (`torch.utils.checkpoint`); none are kept, since how much a similarity of
parts would keep beside its scores is not known here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unicl.objective.blockwise import Side, shares
from unicl.objective.peers import ALONE, Peers, exchanged, gathered, own_rows, total
from unicl.objective.plan import Tiling
from unicl.objective.targets import Target, yes_or_no
from unicl.similarity.find import Similarity
from unicl.space import Embedding, Parts

ELEMENTS = 1 << 22
"""Products of parts in one tile."""

Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """This process's images against the texts of all, and how their scores are made."""

    images: Embedding
    texts: Embedding
    score: Similarity
    scale: Tensor
    bias: Tensor | None
    tiling: Tiling

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """The places of the tiles, rows outside."""
        rows, columns = _steps(self.images, self.texts, rows=self.tiling.rows)
        for start in range(0, len(self.images.whole), rows):
            for first in range(0, len(self.texts.whole), columns):
                yield (
                    slice(start, min(start + rows, len(self.images.whole))),
                    slice(first, min(first + columns, len(self.texts.whole))),
                )

    def scores(self, images: slice, texts: slice) -> tuple[Tensor, Tensor]:
        """A tile of scaled scores for either direction."""
        made = self.score(self.images.select(images), self.texts.select(texts))
        first, second = (s * self.scale if self.bias is None else s * self.scale + self.bias for s in made)
        return first, second


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
    own = own_rows(images.sizes, rank=peers.rank)
    rows, row_share = shares(target.from_texts(texts.counts), images.counts, image_weight)
    columns, column_share = shares(target.turned().from_texts(images.counts), texts.counts, 1 - image_weight)
    row_floor = smoothing * rows[own] / texts.counts.sum()
    column_floor = smoothing * columns / images.counts.sum()
    pairs = _Pairs(
        images=images.embedding,
        texts=_exchanged(texts.embedding, texts.sizes, peers),
        score=score,
        scale=scale,
        bias=None,
        tiling=tiling,
    )
    near = target.part(own, slice(0, len(columns)))

    def sums(image_place: slice, text_place: slice) -> tuple[Tensor, Tensor, Tensor]:
        by_image, by_text = pairs.scores(image_place, text_place)
        wanted = near.part(image_place, text_place).dense().to(by_image) * (1 - smoothing)
        row_count, column_count = images.counts[own][image_place, None], texts.counts[text_place]
        pull_row = (wanted * row_share[own][image_place, None] + row_floor[image_place, None]) * column_count
        pull_column = (wanted * column_share[text_place] + column_floor[text_place]) * row_count
        return (
            torch.logsumexp(by_image + column_count.log(), dim=1),
            torch.logsumexp(by_text + row_count.log(), dim=0),
            (pull_row * by_image).sum() + (pull_column * by_text).sum(),
        )

    row_log, column_log, pulled = _gathered_sums(pairs, sums, like=scale.to(images.embedding.whole))
    everyones = exchanged(column_log[None], sizes=(1,) * peers.size, peers=peers)
    own_columns = own_rows(texts.sizes, rank=peers.rank)
    column_log = torch.logsumexp(everyones, dim=0)[own_columns]
    return total(rows[own] @ row_log + columns[own_columns] @ column_log - pulled, peers=peers)


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
    """`unicl.objective.losses.sigmoid`, of the mean of both tables of scores if they differ."""
    del image_weight
    own = own_rows(images.sizes, rank=peers.rank)
    everyones = _exchanged(texts.embedding, texts.sizes, peers)
    pairs = _Pairs(images=images.embedding, texts=everyones, score=score, scale=scale, bias=bias, tiling=tiling)
    near = yes_or_no(target).part(own, slice(0, len(texts.counts)))

    def loss(image_place: slice, text_place: slice) -> Tensor:
        scores = _one_table(pairs.scores(image_place, text_place))
        yes = near.part(image_place, text_place).dense().to(scores) * (1 - smoothing) + smoothing / 2
        each = -yes * F.logsigmoid(scores) - (1 - yes) * F.logsigmoid(-scores)
        return images.counts[own][image_place] @ each @ texts.counts[text_place]

    made = [checkpoint(loss, *places, use_reentrant=False) for places in pairs.tiles()]
    taking_part = sum(t.sum() * 0 for t in _tensors(everyones)) + scale.to(images.embedding.whole) * 0
    together = torch.stack([*made, taking_part]).sum()
    return total(together / max(sum(images.sizes), 1), peers=peers)


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
    """Any function of `unicl.objective.losses`' form, on all scores of all processes at once: for small batches."""
    del tiling
    first = _moved(images.embedding, lambda t: gathered(t, sizes=images.sizes, peers=peers), peers)
    second = _moved(texts.embedding, lambda t: gathered(t, sizes=texts.sizes, peers=peers), peers)
    scores = _one_table(score(first, second)) * scale
    return loss(
        scores if bias is None else scores + bias,
        target.dense().to(scores),
        counts=texts.counts,
        image_weight=image_weight,
        smoothing=smoothing,
    )


def _gathered_sums(
    pairs: _Pairs, sums: Callable[[slice, slice], tuple[Tensor, Tensor, Tensor]], *, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's and each column's logarithm of sums over all tiles, and the sum of what is pulled."""
    rows, columns = len(pairs.images.whole), len(pairs.texts.whole)
    by_row: dict[int, list[Tensor]] = {}
    by_column: dict[int, list[Tensor]] = {}
    # A process without rows takes part in every exchange of the backward pass.
    pulled = like * 0 + sum(t.sum() * 0 for t in _tensors(pairs.texts))
    for image_place, text_place in pairs.tiles():
        row, column, pull = checkpoint(sums, image_place, text_place, use_reentrant=False)
        by_row.setdefault(image_place.start, []).append(row)
        by_column.setdefault(text_place.start, []).append(column)
        pulled = pulled + pull
    row_log = [torch.logsumexp(torch.stack(each), dim=0) for each in by_row.values()]
    column_log = [torch.logsumexp(torch.stack(each), dim=0) for each in by_column.values()]
    return (
        torch.cat(row_log) if rows else like.new_zeros(0),
        torch.cat(column_log) if rows else pulled + like.new_full((columns,), -torch.inf),
        pulled,
    )


def _steps(images: Embedding, texts: Embedding, *, rows: int | None) -> tuple[int, int]:
    """Rows and columns of a tile, so that the products of all their parts fit into `ELEMENTS`."""
    parts = [1 if e.parts is None else e.parts.values.shape[1] for e in (images, texts)]
    side = max(int((ELEMENTS / max(parts[0] * parts[1], 1)) ** 0.5), 1)
    return (rows or side, rows or side)


def _tensors(embedding: Embedding) -> list[Tensor]:
    return [embedding.whole, *([] if embedding.parts is None else [embedding.parts.values])]


def _one_table(scores: tuple[Tensor, Tensor]) -> Tensor:
    first, second = scores
    return first if first is second or torch.equal(first, second) else (first + second) / 2


def _exchanged(embedding: Embedding, sizes: tuple[int, ...], peers: Peers) -> Embedding:
    return _moved(embedding, lambda t: exchanged(t, sizes=sizes, peers=peers), peers)


def _moved(embedding: Embedding, move: Move, peers: Peers) -> Embedding:
    """The rows of all processes; parts are padded to the most that a row of any process has."""
    whole = move(embedding.whole)
    if embedding.parts is None:
        return replace(embedding, whole=whole, features=whole[:, :0])
    values, mask = embedding.parts.values, embedding.parts.mask
    longest = int(peers.max(torch.tensor(values.shape[1], device=values.device)))
    missing = longest - values.shape[1]
    values, mask = F.pad(values, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    parts = Parts(values=move(values), mask=move(mask.to(values)) > 0)
    return Embedding(whole=whole, features=whole[:, :0], parts=parts)
