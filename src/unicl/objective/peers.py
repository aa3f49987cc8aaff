"""What an objective asks of the processes that share its batch, without knowing how they talk."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor

from unicl.space import Columns, Embedding, Keys

Gather = Literal["exact", "detached", "none"]
"""What a contrast takes from other processes: their rows and the gradient of these, their rows alone, or nothing."""


class Peers(Protocol):
    """The processes that hold the rows of one batch; each method is called by all of them at once."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many processes there are."""

    def sizes(self, rows: int) -> tuple[int, ...]:
        """How many rows each process has."""

    def gather(self, rows: Tensor, *, sizes: Sequence[int]) -> Tensor:
        """The rows of all in the order of their ranks, without a gradient."""

    def sum(self, value: Tensor) -> Tensor:
        """The sum of one value (of any shape) over all."""

    def max(self, value: Tensor) -> Tensor:
        """The largest of one value (of any shape) over all, element by element."""

    def scatter_sum(self, rows: Tensor, *, sizes: Sequence[int]) -> Tensor:
        """This process's own rows of the sum over all of ``rows``, which holds everybody's."""

    def pass_on(self, rows: Tensor) -> Tensor:
        """Give rows of equal shape to the next process and take those of the one before."""


@dataclass(frozen=True, slots=True)
class Alone:
    """One process that holds the whole batch."""

    rank: int = 0
    size: int = 1

    def sizes(self, rows: int) -> tuple[int, ...]:
        """As in `Peers`, for one process."""
        return (rows,)

    def gather(self, rows: Tensor, *, sizes: Sequence[int]) -> Tensor:
        """As in `Peers`, for one process."""
        del sizes
        return rows

    def sum(self, value: Tensor) -> Tensor:
        """As in `Peers`, for one process."""
        return value

    def max(self, value: Tensor) -> Tensor:
        """As in `Peers`, for one process."""
        return value

    def scatter_sum(self, rows: Tensor, *, sizes: Sequence[int]) -> Tensor:
        """As in `Peers`, for one process."""
        del sizes
        return rows

    def pass_on(self, rows: Tensor) -> Tensor:
        """As in `Peers`, for one process."""
        return rows


ALONE: Final = Alone()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A batch over all processes: this one's rows of the columns, and what every row of every process shows.

    ``columns`` has this process's embeddings only; ``image_keys``, ``text_keys`` and ``text_counts`` are of all rows,
    in the order of the ranks; ``image_sizes`` and ``text_sizes`` say how many rows each process has.
    """

    columns: Columns
    image_keys: Keys
    text_keys: Keys
    text_counts: Tensor
    image_sizes: tuple[int, ...]
    text_sizes: tuple[int, ...]
    peers: Peers

    @property
    def own_images(self) -> slice:
        """The place of this process's images among all."""
        return own_rows(self.image_sizes, rank=self.peers.rank)

    @property
    def own_texts(self) -> slice:
        """The place of this process's texts among all."""
        return own_rows(self.text_sizes, rank=self.peers.rank)


def share(columns: Columns, *, peers: Peers = ALONE) -> Shared:
    """Tell all processes what each row shows: keys and counts travel, embeddings stay where they are."""
    image_sizes, text_sizes = (peers.sizes(keys.size) for keys in (columns.image_keys, columns.text_keys))
    return Shared(
        columns=columns,
        image_keys=_gathered_keys(columns.image_keys, peers, sizes=image_sizes),
        text_keys=_gathered_keys(columns.text_keys, peers, sizes=text_sizes),
        text_counts=peers.gather(columns.text_counts, sizes=text_sizes),
        image_sizes=image_sizes,
        text_sizes=text_sizes,
        peers=peers,
    )


def apart(shared: Shared) -> Shared:
    """This process's rows as if there were no other process."""
    images, texts = shared.own_images, shared.own_texts
    return Shared(
        columns=shared.columns,
        image_keys=shared.image_keys.select(_within(images, shared.image_keys)),
        text_keys=shared.text_keys.select(_within(texts, shared.text_keys)),
        text_counts=shared.text_counts[texts],
        image_sizes=(images.stop - images.start,),
        text_sizes=(texts.stop - texts.start,),
        peers=ALONE,
    )


def detached(embedding: Embedding, *, peers: Peers) -> Embedding:
    """The same vectors with the gradient that they have where other processes' rows are constants (cn_clip's gather).

    The mean over processes then leaves the towers 1 / processes of the exact gradient; what a term owns keeps its own.
    """
    if peers.size == 1:
        return embedding
    parts = embedding.parts
    if parts is not None:
        parts = replace(parts, values=_shrunk(parts.values, peers.size))
    return replace(embedding, whole=_shrunk(embedding.whole, peers.size), parts=parts)


def _shrunk(rows: Tensor, size: int) -> Tensor:
    """Equal rows, since what is added is exactly 0."""
    still = rows.detach()
    return still + (rows - still) / size


def _within(place: slice, keys: Keys) -> Tensor:
    mask = torch.zeros(keys.size, dtype=torch.bool, device=keys.rows.device)
    mask[place] = True
    return mask


def own_rows(sizes: Sequence[int], *, rank: int) -> slice:
    """The place of a process's rows among those of all."""
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def sizes_of(mask: Tensor, *, sizes: Sequence[int]) -> tuple[int, ...]:
    """How many rows of each process a mask over all rows chooses."""
    return tuple(int(part.sum()) for part in torch.split(mask, list(sizes)))


def nothing(columns: Columns) -> Tensor:
    """A zero that still has a graph, so that every rank and every step takes the same path."""
    there = [columns.images, *([] if columns.texts is None else [columns.texts])]
    values = [each.parts.values for each in there if each.parts is not None]
    return torch.stack([t.sum() * 0 for t in (*(each.whole for each in there), *values)]).sum()


def total(value: Tensor, *, peers: Peers) -> Tensor:
    """The sum over all processes of one number each, with a gradient.

    The gradient is that of the own number times the number of processes, as everywhere in the objective: the mean
    over the processes of a parameter's gradients is then the gradient of the sum.
    """
    return value if peers.size == 1 else _Total.apply(value, peers)


def gathered(rows: Tensor, *, sizes: Sequence[int], peers: Peers) -> Tensor:
    """The rows of all processes with a gradient: that of the own rows times the number of processes; see `total`.

    Right where every process computes the same number from all the rows.
    """
    return rows if peers.size == 1 else _Gathered.apply(rows, tuple(sizes), peers)


def exchanged(rows: Tensor, *, sizes: Sequence[int], peers: Peers) -> Tensor:
    """The rows of all processes with a gradient: the sum of what every process makes of them.

    Right where each process computes a number of its own from all the rows, and `total` adds these up.
    """
    return rows if peers.size == 1 else _Exchanged.apply(rows, tuple(sizes), peers)


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...], peers: Peers) -> Tensor:
        ctx.sizes, ctx.peers = sizes, peers
        return peers.gather(rows, sizes=sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.peers.scatter_sum(grads[0], sizes=ctx.sizes), None, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, peers: Peers) -> Tensor:
        ctx.size = peers.size
        return peers.sum(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.size, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...], peers: Peers) -> Tensor:
        ctx.own, ctx.size = own_rows(sizes, rank=peers.rank), peers.size
        return peers.gather(rows, sizes=sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.own] * ctx.size, None, None


def _gathered_keys(keys: Keys, peers: Peers, *, sizes: Sequence[int]) -> Keys:
    if peers.size == 1:
        return keys
    rows = keys.rows + own_rows(sizes, rank=peers.rank).start
    entries = peers.sizes(len(rows))
    # One message for the three columns of whole numbers.
    numbers = peers.gather(torch.stack([rows, keys.keys, keys.types], dim=1), sizes=entries)
    moved = replace(keys, rows=numbers[:, 0], keys=numbers[:, 1], types=numbers[:, 2], size=sum(sizes))
    return replace(moved, weights=peers.gather(keys.weights, sizes=entries))
