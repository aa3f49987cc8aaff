"""Processes that train one model together: exchanged rows, exact gradients, shared decisions."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unicl.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among all: its rank, how many there are, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    patient: Any = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process is here, also where one has long work to do alone."""
        if self.size > 1:
            dist.barrier(self.patient)

    def sizes(self, rows: int) -> tuple[int, ...]:
        """As in `unicl.objective.peers.Peers`."""
        if self.size == 1:
            return (rows,)
        own = torch.tensor([rows], device=self.device)
        return tuple(self.gather(own, sizes=(1,) * self.size).tolist())

    def gather(self, rows: Tensor, *, sizes: Sequence[int]) -> Tensor:
        """As in `unicl.objective.peers.Peers`: all rows in the order of their ranks, without a gradient."""
        if self.size == 1:
            return rows
        longest = max(sizes)
        parts = rows.new_empty(self.size * longest, *rows.shape[1:])
        # gloo and nccl gather equal shapes only.
        dist.all_gather_into_tensor(parts, _padded(rows, longest))
        if min(sizes) == longest:
            return parts
        return torch.cat([part[:size] for part, size in zip(torch.split(parts, longest), sizes, strict=True)])

    def sum(self, value: Tensor) -> Tensor:
        """As in `unicl.objective.peers.Peers`."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def max(self, value: Tensor) -> Tensor:
        """As in `unicl.objective.peers.Peers`."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def scatter_sum(self, rows: Tensor, *, sizes: Sequence[int]) -> Tensor:
        """As in `unicl.objective.peers.Peers`: this process's own rows of the sum over all."""
        if self.size == 1:
            return rows
        longest = max(sizes)
        padded = torch.cat([_padded(part, longest) for part in torch.split(rows, list(sizes))])
        own = rows.new_empty(longest, *rows.shape[1:])
        dist.reduce_scatter_tensor(own, padded)
        return own[: sizes[self.rank]]

    def pass_on(self, rows: Tensor) -> Tensor:
        """As in `unicl.objective.peers.Peers`: to the next process, from the one before."""
        if self.size == 1:
            return rows
        taken = torch.empty_like(rows)
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        messages = [dist.P2POp(dist.isend, rows.contiguous(), after), dist.P2POp(dist.irecv, taken, before)]
        for message in dist.batch_isend_irecv(messages):
            message.wait()
        return taken

    def _reduced(self, value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return value
        result = value.clone()
        dist.all_reduce(result, op=operation)
        return result

    def any(self, flag: bool) -> bool:
        """Whether the flag holds on any process; the same answer on all."""
        return self.most(int(flag)) > 0

    def most(self, number: int) -> int:
        """The largest of the numbers of all processes."""
        return number if self.size == 1 else int(self.max(torch.tensor(number, device=self.device)))


@contextmanager
def start(device: str = "auto", *, timeout: timedelta | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started (gloo on CPU, nccl on GPUs), or be the only one.

    A process waits for another one for ``timeout`` (see `patience`), and `PATIENCE` times as long where one may have
    work to do that the others do not share, such as saving. Raises `UserError` for a timeout that is none.
    """
    rank, size, local = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    place = _device(device, local)
    if size == 1:
        yield Ranks(device=place)
        return
    timeout = timeout or patience()
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timeout)
    patient = dist.new_group(backend="gloo", timeout=PATIENCE * timeout)
    yield Ranks(rank=rank, size=size, device=place, patient=patient)
    # After an error the threads of the group may wait for a process that is gone, and are left to the system.
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the first of those that torchrun started, or the only one, outside `start` as well."""
    return int(os.environ.get("RANK", "0")) == 0


def patience() -> timedelta:
    """How long a process waits for another one: ``UNICL_TIMEOUT`` seconds, or 5 minutes."""
    given = os.environ.get("UNICL_TIMEOUT", "300")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"UNICL_TIMEOUT is {given!r}; give seconds above 0, such as 300")
    return timedelta(seconds=seconds)


PATIENCE: Final = 12
_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


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
    dist.all_gather_object(values, value, group=ranks.patient)
    return values


def _padded(rows: Tensor, size: int) -> Tensor:
    if len(rows) == size:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])


def _device(name: str, local: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return torch.device(name)
