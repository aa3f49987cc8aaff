"""How many rows the free memory holds in a tower at once: what ``--chunk auto`` means."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from unicl.model import TwoTowers
from unicl.space import Batch, Embedding
from unicl.train.cached import again, no_sync, statistics
from unicl.train.compute import ComputeSettings
from unicl.train.memory import free_bytes, peak_bytes
from unicl.train.ranks import Ranks
from unicl.train.step import Precision, Sync

MARGIN = 0.8
"""The share of the free memory that `find_chunk` plans with."""
TRIALS = (2, 8)
"""The rows of the two passes that it measures: enough for batch statistics, few enough for any memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """What `find_chunk` found: rows of a chunk, or None if the whole batch fits at once, and what it was reckoned from.

    ``image_bytes`` and ``text_bytes`` are what one more row takes in its tower, of the ``free`` bytes.
    """

    chunk: int | None
    rows: int
    image_bytes: int
    text_bytes: int
    free: int

    def __str__(self) -> str:
        take = f"the batch of {self.rows} fits at once" if self.chunk is None else f"chunks of {self.chunk}"
        text = f" and a text {self.text_bytes / 1e6:.1f} MB" if self.text_bytes else ""
        return f"{take}: an image takes {self.image_bytes / 1e6:.1f} MB{text} of {self.free / 1e9:.1f} GB free"


def find_chunk(
    model: TwoTowers,
    batch: Batch,
    *,
    ranks: Ranks,
    precision: Precision,
    compute: ComputeSettings = ComputeSettings(),
    sync: Sync | None = None,
    free: int | None = None,
) -> Chunking:
    """The largest chunk that the free memory holds, the same on all ranks; None if a plain step fits.

    Measures both towers, forward and backward, on two small numbers of rows of this batch (texts at its longest);
    memory is linear in the rows. Planned are `MARGIN` of the free memory less what a step needs besides: gradients,
    the optimiser's two moments, the embeddings of the batch, and the scores that are kept. A chunk of 8 or more is a
    multiple of 8. Leaves weights, gradients, batch statistics and random states as they are.

    ``free`` is the free memory in bytes; None asks the system. Raises `UserError` if it does not say.
    """
    free = free_bytes(ranks.device) if free is None else free
    budget = int(MARGIN * free) - _needed(model, batch, ranks=ranks, compute=compute)
    towers = _Towers(device=ranks.device, precision=precision)
    with _untouched(model, device=ranks.device), (sync or no_sync)(False):
        images = towers.line(model.image, (batch.images,))
        texts = _Line() if model.text is None else towers.line(model.text, _longest(batch))
    rows, views = max(len(batch.images), len(batch.tokens)), 1 if batch.views is None else 2
    whole = images.bytes(views * len(batch.images)) + texts.bytes(len(batch.tokens))
    most = min(images.rows(budget), texts.rows(budget))
    chunk = rows if most >= rows else most // 8 * 8 if most >= 8 else most
    chunk, fits = _least((max(chunk, 1), int(whole <= budget)), ranks=ranks)
    return Chunking(
        chunk=None if fits else chunk,
        rows=rows,
        image_bytes=images.row,
        text_bytes=texts.row,
        free=free,
    )


@contextmanager
def _untouched(model: nn.Module, *, device: torch.device) -> Iterator[None]:
    """Trial passes that leave no trace; gradients are there from the start, as in all chunks but the first."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.requires_grad]
    for parameter, _ in gradients:
        parameter.grad = torch.zeros_like(parameter)
    try:
        with again(model, statistics(model), device=device):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """The memory of a tower's pass: so many bytes, and so many more for each row."""

    fixed: int = 0
    row: int = 0

    def bytes(self, rows: int) -> int:
        return self.fixed + self.row * rows

    def rows(self, budget: int) -> int:
        return max((budget - self.fixed) // max(self.row, 1), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Towers:
    """Trial passes of a tower, and what they take."""

    device: torch.device
    precision: Precision

    def line(self, tower: Callable[..., Embedding], rows: tuple[Tensor, ...]) -> _Line:
        few, more = TRIALS
        if self.device.type == "cuda":  # the first pass also makes what stays: work spaces and tuned kernels
            self.trial(tower, rows, size=few)
        low, high = (peak_bytes(partial(self.trial, tower, rows, size=size), device=self.device) for size in TRIALS)
        row = max(high - low, 0) // (more - few)
        return _Line(fixed=max(high - row * more, 0), row=row)

    def trial(self, tower: Callable[..., Embedding], rows: tuple[Tensor, ...], *, size: int) -> None:
        """Some of the rows, as often as needed, forward and backward; none if there are none."""
        # A process without rows runs its towers all the same, since they may wait for each other.
        places = torch.arange(size if len(rows[0]) else 0, device=self.device) % max(len(rows[0]), 1)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            embedding = tower(*(each[places] for each in rows))
        learning = [each for each in (embedding.whole, embedding.features) if each.requires_grad]
        if learning:
            torch.autograd.backward(learning, [torch.ones_like(each) for each in learning])


def _longest(batch: Batch) -> tuple[Tensor, Tensor]:
    """The longest of the texts as often as there are texts."""
    tokens, mask = batch.tokens, batch.token_mask
    if not len(tokens):
        return tokens, mask
    most = mask.sum(1).argmax()
    return tokens[most].expand_as(tokens), mask[most].expand_as(mask)


def _needed(model: TwoTowers, batch: Batch, *, ranks: Ranks, compute: ComputeSettings) -> int:
    """Bytes that a step needs besides its activations; reckoned high where it costs little."""
    learning = [_own(parameter) for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(parameter.nbytes for parameter in learning)
    moments = 2 * 4 * sum(parameter.numel() for parameter in learning)
    rows = len(batch.images) + len(batch.text_index) + (0 if batch.views is None else len(batch.views))
    # Leaves, rows in their places, what is gathered, each in float32 and with its gradient.
    embeddings = 16 * model.settings.width * rows * ranks.size
    return gradients + moments + embeddings + compute.keep_mb * 1_000_000


def _own(parameter: Tensor) -> Tensor:
    """The part of a sharded parameter that is here."""
    part: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return part


def _least(values: tuple[int, int], *, ranks: Ranks) -> tuple[int, int]:
    chunk, fits = (-ranks.max(-torch.tensor(values, device=ranks.device))).tolist()
    return chunk, fits
