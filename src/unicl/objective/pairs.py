"""Images and texts of several processes, scored a tile at a time by any similarity, and what it keeps of that.

A process holds its images, and meets the texts of all: gathered, or block by block while they travel in a ring. Of a
tile only its two tables leave this module; gradients go back through the similarity by automatic differentiation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl.objective.blockwise import Side
from unicl.objective.peers import Peers, own_rows
from unicl.objective.plan import Pull, Tiling
from unicl.objective.targets import Target
from unicl.similarity.find import Similarity
from unicl.space import Embedding, Parts

ELEMENTS = 1 << 21
GPU_ELEMENTS = 1 << 26
"""Products of parts in one tile: few enough for a processor's cache, enough to keep a GPU busy."""

Rows = tuple[Tensor, ...]
"""Whole vectors ``(N, D)`` and, if there are, the values of parts ``(N, P, D)``."""

Wanted = tuple[Tensor, Tensor]
"""The target of a tile in the softmax of its images, and in that of its texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Travel:
    """How this process's texts go on their way: by their number of parts, so that a tile's are of like length.

    ``order`` are the numbers of the own texts, None if they stay as they are; ``everyones`` the same of all processes'
    texts; ``mask (T, Q)`` says which parts of these are real.
    """

    order: Tensor | None = None
    everyones: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """A comparison without its vectors: the images of this process against the texts of all.

    ``target``, ``pull`` and counts are of these images and of all texts as they travel; ``weights`` are those of the
    logarithms of sums over each row and column, where a loss has them; ``sizes`` are those of all processes' texts.
    """

    score: Similarity
    target: Target
    sizes: tuple[int, ...]
    row_counts: Tensor
    column_counts: Tensor
    image_mask: Tensor | None
    travel: Travel
    peers: Peers
    tiling: Tiling
    learns: bool
    pull: Pull | None = None
    weights: tuple[Tensor, Tensor] | None = None

    @property
    def own_columns(self) -> slice:
        """Where this process's texts stand among all."""
        return own_rows(self.sizes, rank=self.peers.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Two tables of scores, not scaled, of the ``images`` and ``texts`` that they were made of."""

    by_image: Tensor
    by_text: Tensor
    images: Rows = ()
    texts: Rows = ()

    def gradients(self, by_image: Tensor, by_text: Tensor) -> list[Tensor | None]:
        """The gradient of images and texts, given that of the tables; None where the similarity does not look."""
        leaves = [*self.images, *self.texts]
        given = [(self.by_image, by_image), (self.by_text, by_text)]
        if self.by_image is self.by_text:
            given = [(self.by_image, by_image + by_text)]
        given = [(table, grad) for table, grad in given if table.requires_grad]
        if not given:
            return [None] * len(leaves)
        tables, grads = zip(*given, strict=True)
        return list(torch.autograd.grad(tables, leaves, grads, allow_unused=True))


@dataclass(slots=True, kw_only=True)
class Budget:
    """Bytes in which tiles keep their graphs, and what one pair of rows took of them."""

    room: int
    each: float = 0.0
    kept: dict[tuple[int, int, int], Tile] = field(default_factory=dict)

    def allows(self, pairs: int) -> bool:
        """Whether a tile of so many pairs may fit; the first one has to be tried."""
        return self.room > self.each * pairs

    def offer(self, name: tuple[int, int, int], tile: Tile, *, bytes: int) -> None:
        """Keep a tile if there is room for what its graph holds."""
        self.each = bytes / max(tile.by_image.numel(), 1)
        if bytes <= self.room:
            self.kept[name] = tile
            self.room -= bytes


class Work:
    """The passes over the tiles of one comparison, and the tiles that are kept from the first to the second."""

    def __init__(self, pairs: Pairs, rows: Rows) -> None:
        number = 1 if pairs.image_mask is None else 2
        self.pairs = pairs
        self.travels = torch.bfloat16 if pairs.tiling.operands == "bf16" else rows[0].dtype
        # The sums over positives and the gradient of the scale must see the numbers that tiles see.
        self.images = tuple(t.detach().to(self.travels).to(t.dtype) for t in rows[:number])
        self.texts = tuple(t.detach() for t in rows[number:])
        self.everybodys: Rows | None = None
        self.budget = Budget(room=pairs.tiling.keep)

    @property
    def ring(self) -> bool:
        """Whether blocks of texts travel from process to process."""
        return self.pairs.tiling.exchange == "ring" and self.pairs.peers.size > 1

    def scored(self, *, keep: bool) -> Iterator[tuple[slice, slice, Wanted, Tile]]:
        """All tiles once: places of images and of texts, their target, and tables without a gradient."""
        for hop, place, block in self.blocks():
            yield from self.tiles(hop, place, block, keep=keep, learn=False)

    def gradients(self, push: Callable[[slice, slice, Wanted, Tile], tuple[Tensor, Tensor]]) -> tuple[Rows, Rows]:
        """All tiles once more: the gradient of this process's images and texts, given that of each tile's tables."""
        images = tuple(torch.zeros_like(t) for t in self.images)

        def part(hop: int, place: slice, block: Rows) -> Rows:
            texts = tuple(torch.zeros_like(t, dtype=self.images[0].dtype) for t in block)
            for own, at, wanted, tile in self.tiles(hop, place, block, keep=False, learn=True):
                made = tile.gradients(*push(own, at, wanted, tile))
                inside = slice(at.start - place.start, at.stop - place.start)
                sums = [t[own] for t in images] + [t[inside] for t in texts]
                for into, gradient in zip(sums, made, strict=True):
                    if gradient is not None:
                        into += gradient
            return texts

        texts = self.collect(part)
        # The graph lives on while the towers learn; what can be made again should not.
        self.everybodys = None
        return images, tuple(self.returned(t, like=own) for t, own in zip(texts, self.texts, strict=True))

    def tiles(
        self, hop: int, place: slice, block: Rows, *, keep: bool, learn: bool
    ) -> Iterator[tuple[slice, slice, Wanted, Tile]]:
        """The tiles of one block of texts: those that were kept, the others anew; with gradients if asked to learn."""
        rows, columns = self.steps()
        for start in range(0, len(self.images[0]), rows):
            own = slice(start, min(start + rows, len(self.images[0])))
            wanted = self.wanted(own, place)
            for first in range(0, len(block[0]), columns):
                inside = slice(first, min(first + columns, len(block[0])))
                at = slice(place.start + inside.start, place.start + inside.stop)
                tile = self.budget.kept.pop((hop, start, first), None)
                if tile is None:
                    texts = tuple(t[inside] for t in block)
                    name = (hop, start, first) if keep else None
                    tile = self.tile(own, at, texts, name=name, learn=learn)
                yield own, at, (wanted[0][:, inside], wanted[1][:, inside]), tile

    def wanted(self, own: slice, place: slice) -> Wanted:
        """The target of some images and a block of texts; one table if both directions read the same."""
        target = self.pairs.target.part(own, place).turned()
        by_text = target.dense(by="images").T.to(self.images[0])
        is_one = target.kernel is None or target.kernel.text_most is None
        return by_text if is_one else target.dense(by="texts").T.to(by_text), by_text

    def tile(self, own: slice, at: slice, texts: Rows, *, name: tuple[int, int, int] | None, learn: bool) -> Tile:
        """Score some images against some texts; under its name the tile is kept if its graph fits the budget."""
        images = tuple(t[own] for t in self.images)
        texts = tuple(t.to(images[0].dtype) for t in texts)
        pairs = len(images[0]) * len(texts[0])
        tries = name is not None and self.budget.allows(pairs)
        if not (learn or tries):
            return self._score(own, at, images, texts)
        images, texts = (tuple(t.detach().requires_grad_() for t in side) for side in (images, texts))
        held = _Held(images, texts)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(held.pack, _itself):
            tile = self._score(own, at, images, texts)
        if name is not None:
            self.budget.offer(name, tile, bytes=held.bytes + tile.by_image.nbytes + tile.by_text.nbytes)
        return tile

    def _score(self, own: slice, at: slice, images: Rows, texts: Rows) -> Tile:
        pairs = self.pairs
        masks = pairs.image_mask, pairs.travel.mask
        first, second = (
            _embedding(side, None if mask is None else mask[place])
            for side, mask, place in zip((images, texts), masks, (own, at), strict=True)
        )
        by_image, by_text = pairs.score(first, second)
        return Tile(by_image=by_image, by_text=by_text, images=images, texts=texts)

    def steps(self) -> tuple[int, int]:
        """Rows and columns of a tile: about as many products of parts as wanted, as many parts on either side."""
        tiling = self.pairs.tiling
        if tiling.rows is not None:
            return tiling.rows, tiling.rows
        elements = GPU_ELEMENTS if self.images[0].device.type == "cuda" else ELEMENTS
        masks = self.pairs.image_mask, self.pairs.travel.mask
        sizes = [1 if mask is None else max(mask.shape[1], 1) for mask in masks]
        number = max(elements // (sizes[0] * sizes[1]), 1)
        columns = max(int((number * sizes[0] / sizes[1]) ** 0.5) // 8 * 8, 1)
        return max(number // columns, 1), columns

    def blocks(self) -> Iterator[tuple[int, slice, Rows]]:
        """Blocks of texts: all at once, gathered; or each process's in turn, while they travel in a ring."""
        sizes, peers = self.pairs.sizes, self.pairs.peers
        if not self.ring:
            if self.everybodys is None:
                self.everybodys = tuple(_from_bytes(peers.gather(t, sizes=sizes), self.travels) for t in self.sent())
            yield 0, slice(0, sum(sizes)), self.everybodys
            return
        moving = [_padded(t, max(sizes)) for t in self.sent()]
        for hop in range(peers.size):
            owner = (peers.rank - hop) % peers.size
            yield hop, own_rows(sizes, rank=owner), tuple(_from_bytes(t[: sizes[owner]], self.travels) for t in moving)
            if hop + 1 < peers.size:
                moving = [peers.pass_on(t) for t in moving]

    def collect(self, part: Callable[[int, slice, Rows], Rows]) -> Rows:
        """The sum over all processes of what ``part`` makes of each block, for this process's own texts."""
        sizes, peers = self.pairs.sizes, self.pairs.peers
        if not self.ring:
            made = [part(hop, place, block) for hop, place, block in self.blocks()]
            return tuple(peers.scatter_sum(t, sizes=sizes) for t in made[0])
        moving: list[Tensor] = []
        for hop, place, block in self.blocks():
            made_here = part(hop, place, block)
            moving = moving or [t.new_zeros(max(sizes), *t.shape[1:]) for t in made_here]
            for into, rows in zip(moving, made_here, strict=True):
                into[: len(rows)] += rows
            moving = [peers.pass_on(t) for t in moving]
        return tuple(t[: len(own)] for t, own in zip(moving, self.texts, strict=True))

    def sent(self) -> Iterator[Tensor]:
        """This process's texts as they travel: in order, with room for the most parts of any, rounded if asked to."""
        travel = self.pairs.travel
        for rows in self.texts:
            ordered = rows if travel.order is None else rows[travel.order]
            if rows.ndim == 3 and travel.mask is not None:
                ordered = F.pad(ordered, (0, 0, 0, travel.mask.shape[1] - ordered.shape[1]))
            yield _to_bytes(ordered.to(self.travels), alone=self.pairs.peers.size == 1)

    def returned(self, gradient: Tensor, *, like: Tensor) -> Tensor:
        """What came back for this process's texts, as they were before they travelled."""
        if gradient.ndim == 3:
            gradient = gradient[:, : like.shape[1]]
        order = self.pairs.travel.order
        return gradient if order is None else torch.empty_like(gradient).index_copy_(0, order, gradient)


@dataclass(slots=True)
class _Held:
    """Counts the bytes that a graph holds beside the rows it starts from."""

    images: Rows
    texts: Rows
    bytes: int = 0
    seen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.seen = {t.untyped_storage().data_ptr() for t in (*self.images, *self.texts)}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def travel_of(texts: Side, peers: Peers) -> Travel:
    """Decide with all processes in which order texts travel."""
    parts = texts.embedding.parts
    if parts is None:
        return Travel()
    order = parts.mask.sum(1).argsort(stable=True)
    start = own_rows(texts.sizes, rank=peers.rank).start
    everyones = peers.gather(order + start, sizes=texts.sizes)
    longest = int(peers.max(torch.tensor(parts.mask.shape[1], device=order.device)))
    mask = F.pad(parts.mask[order], (0, longest - parts.mask.shape[1]))
    mask = peers.gather(mask.to(torch.uint8), sizes=texts.sizes) > 0
    stays = torch.equal(order, torch.arange(len(order), device=order.device))
    return Travel(order=None if stays else order, everyones=everyones, mask=mask)


def in_order(target: Target, travel: Travel) -> Target:
    """A target whose texts are numbered as they travel."""
    if travel.everyones is None:
        return target
    number = torch.empty_like(travel.everyones)
    number[travel.everyones] = torch.arange(len(number), device=number.device)
    return replace(target, texts=replace(target.texts, rows=number[target.texts.rows]))


def rows_of(side: Side) -> Rows:
    """The vectors of this process's rows, of wholes and of parts, in float32 at least."""
    parts = side.embedding.parts
    values = () if parts is None else (parts.values.to(torch.promote_types(parts.values.dtype, torch.float32)),)
    return (side.vectors, *values)


def _embedding(rows: Rows, mask: Tensor | None) -> Embedding:
    parts = None if mask is None else Parts(values=rows[1], mask=mask)
    return Embedding(whole=rows[0], features=rows[0][:, :0], parts=parts)


def _to_bytes(rows: Tensor, *, alone: bool) -> Tensor:
    """Half-precision rows as bytes: not every way between processes knows bfloat16."""
    return rows.contiguous().view(torch.uint8) if rows.dtype == torch.bfloat16 and not alone else rows


def _from_bytes(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return rows.view(dtype) if rows.dtype == torch.uint8 else rows


def _padded(rows: Tensor, size: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])


def _itself(tensor: Tensor) -> Tensor:
    return tensor
