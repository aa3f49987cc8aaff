"""Processes that train one model together: gathered columns, exact gradients, shared decisions."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unicl.space import Columns, Embedding, Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among all: its rank, how many there are, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag holds on any process; the same answer on all."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)


@contextmanager
def start(device: str = "auto", *, timeout: timedelta = timedelta(minutes=30)) -> Iterator[Ranks]:
    """Join the processes that torchrun started (gloo on CPU, nccl on GPUs), or be the only one."""
    rank, size, local = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    place = _device(device, local)
    if size > 1:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timeout)
    try:
        yield Ranks(rank=rank, size=size, device=place)
    finally:
        if size > 1:
            dist.destroy_process_group()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def gather(rows: Tensor, *, ranks: Ranks) -> Tensor:
    """The rows of all processes, in the order of their ranks; each may have another number of them.

    The gradient is exact for the pattern of this library: every process computes the same loss of the gathered
    rows, takes the gradient of its own rows times the number of processes, and `average_gradients` divides by it.
    """
    return rows if ranks.size == 1 else _Gather.apply(rows, ranks)


def gather_columns(columns: Columns, *, ranks: Ranks, features: bool) -> Columns:
    """The columns of all processes as if one had made them; ``features`` only if a term of the objective reads them."""
    if ranks.size == 1:
        return columns
    return Columns(
        images=_gather_embedding(columns.images, ranks, features=features),
        views=None if columns.views is None else _gather_embedding(columns.views, ranks, features=False),
        image_keys=_gather_keys(columns.image_keys, ranks),
        texts=None if columns.texts is None else _gather_embedding(columns.texts, ranks, features=False),
        text_keys=_gather_keys(columns.text_keys, ranks),
        text_counts=gather(columns.text_counts, ranks=ranks),
    )


def average_gradients(parameters: Iterable[nn.Parameter], *, ranks: Ranks) -> None:
    """Replace every gradient by its mean over the processes, in one message a dtype; a missing one counts as zero."""
    if ranks.size == 1:
        return
    learning = [p for p in parameters if p.requires_grad]
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for dtype in sorted({p.dtype for p in learning}, key=str):
        grads = [p.grad for p in learning if p.dtype == dtype and p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        for grad, mean in zip(grads, torch.split(flat / ranks.size, [g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))


def gather_objects(value: Any, *, ranks: Ranks) -> list[Any]:
    """One small object of each process, in the order of their ranks."""
    if ranks.size == 1:
        return [value]
    values: list[Any] = [None] * ranks.size
    dist.all_gather_object(values, value)
    return values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        sizes = _sizes(len(rows), ranks)
        ctx.own = slice(sum(sizes[: ranks.rank]), sum(sizes[: ranks.rank + 1]))
        ctx.ranks = ranks.size
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.own] * ctx.ranks, None


def _sizes(own: int, ranks: Ranks) -> Sequence[int]:
    sizes = [torch.zeros((), dtype=torch.int64, device=ranks.device) for _ in range(ranks.size)]
    dist.all_gather(sizes, torch.tensor(own, device=ranks.device))
    return [int(size) for size in sizes]


def _gather_embedding(embedding: Embedding, ranks: Ranks, *, features: bool) -> Embedding:
    whole = gather(embedding.whole, ranks=ranks)
    kept = gather(embedding.features, ranks=ranks) if features else whole[:, :0]
    return Embedding(whole=whole, features=kept)


def _gather_keys(keys: Keys, ranks: Ranks) -> Keys:
    before = _sizes(keys.size, ranks)
    moved = replace(keys, rows=keys.rows + sum(before[: ranks.rank]))
    rows, own, types, weights = (gather(t, ranks=ranks) for t in (moved.rows, keys.keys, keys.types, keys.weights))
    return Keys(rows=rows, keys=own, types=types, weights=weights, size=sum(before))


def _device(name: str, local: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return torch.device(name)
