"""A batch larger than the memory: towers in chunks, the objective over all rows, the same gradient.

Gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", section
3.2) in three passes: embed every chunk without gradients; take the objective and its gradient towards the embeddings;
embed every chunk again, now with gradients, and hand it its rows of that gradient. What is alive at one time is one
chunk's activations, and the embeddings of the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import torch
from torch import Tensor, nn

from unicl.errors import UserError
from unicl.model import TwoTowers
from unicl.space import Batch, Columns, Embedding, Parts, joined
from unicl.towers.image import ImageTower
from unicl.towers.parts import Look
from unicl.train.compute import ComputeSettings
from unicl.train.ranks import Ranks, average_gradients
from unicl.train.step import Precision, StepResult, Sync, tiling_of


def cached_step(
    model: TwoTowers,
    batch: Batch,
    *,
    ranks: Ranks,
    precision: Precision,
    chunk: int,
    compute: ComputeSettings = ComputeSettings(),
    sync: Sync | None = None,
) -> StepResult:
    """`unicl.train.step.plain_step` with at most ``chunk`` rows in a tower at once: the same loss and gradients.

    Columns are cut evenly, texts by length. Dropout draws the same numbers in both passes. Batch statistics are those
    of a chunk, not of the batch, and move once, chunk by chunk: with batch normalisation the numbers depend on the
    chunks, as in any training by chunks. A locked image tower runs once.

    ``sync(True)`` is entered for the last chunk of each tower and ``sync(False)`` for all others; whoever gives it
    averages all gradients over the ranks. All ranks run the same number of chunks, of which some may be empty.

    Raises `UserError` if ``chunk`` is below 1.
    """
    if chunk < 1:
        raise UserError(f"a chunk of {chunk} rows holds nothing; give --chunk 1 or more, or auto")
    passes = _Passes(ranks=ranks, precision=precision, graph=compute.compile)
    before, numbers = statistics(model), _numbers(batch, chunk, ranks)
    seen = [passes.embed(column) for column in _image_columns(model, batch, number=numbers[0], passes=passes)]
    texts, place = _text_column(model, batch, number=numbers[1])
    said = None if texts is None else passes.embed(texts)
    columns = replace(_columns(batch, seen=seen, said=said, place=place), taught=model.taught(batch))
    loss, parts = model.objective(columns, peers=ranks, tiling=tiling_of(compute))
    loss.backward()
    # What the objective kept must not share the memory with the second pass.
    loss = loss.detach()
    del columns
    with again(model, before, device=ranks.device):
        for k, each in enumerate(seen):
            passes.learn(each, sync=sync, last=k == len(seen) - 1)
        if said is not None:
            passes.learn(said, sync=sync, last=True)
    if sync is None:
        average_gradients(model.parameters(), ranks=ranks)
    return StepResult(loss=loss, parts=parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """Rows on their way through a tower: one call for each chunk of them."""

    chunks: tuple[Callable[[], Embedding], ...]
    learns: bool
    features: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Random:
    """The state of the generators that a tower draws from."""

    cpu: Tensor
    device: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A column after its first pass: its embedding as leaves of the objective, and what a second pass starts from.

    ``sizes`` are the rows of each chunk, ``widths`` the parts that its rows have room for.
    """

    column: _Column
    random: tuple[_Random, ...]
    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    leaves: Embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    """How chunks are run; ``graph`` records gradients in the first pass too, only to drop them.

    A compiled tower may draw its random numbers in another order where it records none.
    """

    ranks: Ranks
    precision: Precision
    graph: bool

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def looks(self, tower: ImageTower, parts: Sequence[Tensor]) -> list[Look]:
        """What a locked backbone says of each chunk: it draws nothing and learns nothing, so that once is enough."""
        with torch.no_grad(), self.autocast():
            return [tower.look(part) for part in parts]

    def embed(self, column: _Column) -> _Seen:
        """The first pass."""
        random, seen = [], []
        for chunk in column.chunks:
            random.append(_random(self.ranks.device))
            with torch.set_grad_enabled(self.graph), self.autocast():
                seen.append(_read(chunk(), features=column.features))
        kept = [each.parts for each in seen if each.parts is not None]
        parts = None
        if kept:
            together = joined(kept)
            parts = replace(together, values=together.values.requires_grad_(column.learns))
        whole, features = (
            torch.cat(each).requires_grad_(column.learns)
            for each in ([e.whole for e in seen], [e.features for e in seen])
        )
        return _Seen(
            column=column,
            random=tuple(random),
            sizes=tuple(len(each.whole) for each in seen),
            widths=tuple(each.mask.shape[1] for each in kept),
            leaves=Embedding(whole=whole, features=features, parts=parts),
        )

    def learn(self, seen: _Seen, *, sync: Sync | None, last: bool) -> None:
        """The second pass, with the gradient that the objective left on the leaves."""
        leaves = (seen.leaves.whole, seen.leaves.features, *_values(seen.leaves))
        if all(leaf.grad is None for leaf in leaves):
            return
        split = [_split(leaf.grad, seen.sizes) for leaf in leaves]
        for k, chunk in enumerate(seen.column.chunks):
            _set_random(seen.random[k], self.ranks.device)
            with (sync or no_sync)(last and k == len(seen.sizes) - 1):
                with self.autocast():
                    embedding = chunk()
                grads = [each[k] for each in split]
                if seen.widths and grads[2] is not None:
                    grads[2] = grads[2][:, : seen.widths[k]]
                rows = (embedding.whole, embedding.features, *_values(embedding))
                _backward(*zip(rows, grads, strict=True))


def _numbers(batch: Batch, chunk: int, ranks: Ranks) -> tuple[int, int]:
    """How many chunks of images and of texts: what the rank with the most rows needs, since towers may communicate."""
    own = torch.tensor([max(ceil(len(rows) / chunk), 1) for rows in (batch.images, batch.tokens)])
    images, texts = ranks.max(own.to(ranks.device)).tolist()
    return images, texts


def _image_columns(model: TwoTowers, batch: Batch, *, number: int, passes: _Passes) -> list[_Column]:
    """The images and, if there are, their second views."""
    columns: list[_Column] = []
    for rows in (batch.images, *(() if batch.views is None else (batch.views,))):
        parts: Sequence[Tensor | Look] = rows.tensor_split(number)
        if model.image.locked and rows.ndim > 2 and not _sharded(model.image):
            parts = passes.looks(model.image, rows.tensor_split(number))
        columns.append(
            _Column(
                chunks=tuple(partial(model.image, part) for part in parts),
                learns=_learns(model.image),
                features=model.objective.reads_features and not columns,
            )
        )
    return columns


def _text_column(model: TwoTowers, batch: Batch, *, number: int) -> tuple[_Column | None, Tensor]:
    """The distinct texts by length, so that no chunk is as long as the longest text, and where each text row is."""
    if model.text is None:
        return None, batch.text_index
    lengths = batch.token_mask.sum(1).cpu()
    order = lengths.argsort(stable=True)
    parts = []
    for part in order.tensor_split(number):
        longest = int(lengths[part].max()) if len(part) else 0
        rows = part.to(batch.tokens.device)
        parts.append((batch.tokens[rows, : max(longest, 1)], batch.token_mask[rows, : max(longest, 1)]))
    place = order.argsort().to(batch.text_index.device)[batch.text_index]
    return _Column(chunks=tuple(partial(model.text, *part) for part in parts), learns=_learns(model.text)), place


def _columns(batch: Batch, *, seen: Sequence[_Seen], said: _Seen | None, place: Tensor) -> Columns:
    """What the model would have said of the whole batch, over leaves."""
    texts = None
    if said is not None:
        texts = said.leaves.select(place)
    return Columns(
        images=seen[0].leaves,
        views=seen[1].leaves if len(seen) > 1 else None,
        image_keys=batch.image_keys,
        texts=texts,
        text_keys=batch.text_keys,
        text_counts=batch.text_counts,
        captions=batch.captions,
    )


def _sharded(module: nn.Module) -> bool:
    """Whether its weights come together only when the module itself is called."""
    return any(hasattr(parameter, "to_local") for parameter in module.parameters())


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _read(embedding: Embedding, *, features: bool) -> Embedding:
    """An embedding without its graph; features that no term reads are not kept."""
    whole, parts = embedding.whole.detach(), embedding.parts
    return Embedding(
        whole=whole,
        features=embedding.features.detach() if features else whole[:, :0],
        parts=None if parts is None else Parts(values=parts.values.detach(), mask=parts.mask),
    )


def _values(embedding: Embedding) -> tuple[Tensor, ...]:
    return () if embedding.parts is None else (embedding.parts.values,)


def _split(grad: Tensor | None, sizes: Sequence[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if grad is None else torch.split(grad, list(sizes))


def _backward(*pairs: tuple[Tensor, Tensor | None]) -> None:
    kept = [(rows, grad) for rows, grad in pairs if grad is not None and rows.requires_grad]
    if kept:
        torch.autograd.backward([rows for rows, _ in kept], [grad for _, grad in kept])


def no_sync(_: bool) -> AbstractContextManager[object]:
    """The `Sync` of a process that is alone, or that averages its gradients at the end."""
    return nullcontext()


def _random(device: torch.device) -> _Random:
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    return _Random(cpu=torch.get_rng_state(), device=own)


def _set_random(state: _Random, device: torch.device) -> None:
    torch.set_rng_state(state.cpu)
    if state.device is not None:
        torch.get_device_module(device).set_rng_state(state.device)


def statistics(model: nn.Module) -> list[Tensor]:
    """Copies of all that a forward pass may move: the buffers."""
    return [buffer.clone() for buffer in model.buffers()]


@torch.no_grad()
def _put(model: nn.Module, values: Sequence[Tensor]) -> None:
    for buffer, value in zip(model.buffers(), values, strict=True):
        buffer.copy_(value)


@contextmanager
def again(model: nn.Module, before: Sequence[Tensor], *, device: torch.device) -> Iterator[None]:
    """A second pass, from the statistics of ``before``, that leaves statistics and random states as they are now."""
    moved, random = statistics(model), _random(device)
    _put(model, before)
    try:
        yield
    finally:
        _put(model, moved)
        _set_random(random, device)
