"""How much memory is free, and how much some work takes at its peak."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unicl.errors import UserError

MEMORY_INFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still take: on a GPU what is free there, else its share of the machine's memory.

    The processes that torchrun started on one machine share its memory equally. Raises `UserError` where the system
    does not say how much there is.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Blocks that the allocator keeps for later are free as well.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min(_machine(), _group(GROUP)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def peak_bytes(work: Callable[[], object], *, device: torch.device) -> int:
    """The most bytes of tensors that ``work`` holds at one time, beyond those that were there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _Held() as held:
        work()
    return int(held.peak)


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made while it is on.

    The forward pass, the backward pass, and what gradient checkpointing computes again in it are all seen. torch
    shows them to its dispatch modes only, hence the inheritance.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: WeakKeyDictionary[torch.UntypedStorage, int] = WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            self.known.setdefault(storage, 0)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self.known:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        finalize(storage, self._remove, size).atexit = False

    def _remove(self, size: int) -> None:
        self.now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    # Sharded and sparse tensors have no storage of their own.
    plain = (torch.Tensor, torch.nn.Parameter)
    dense = [leaf for leaf in tree_leaves(values) if type(leaf) in plain and leaf.layout == torch.strided]
    return [leaf.untyped_storage() for leaf in dense]


def _machine() -> int:
    if MEMORY_INFO.is_file():
        fields = dict(
            line.split(":", 1) for line in MEMORY_INFO.read_text(encoding="utf-8").splitlines() if ":" in line
        )
        if "MemAvailable" in fields:
            return int(fields["MemAvailable"].split()[0]) * 1024
    if sys.platform == "win32":
        raise UserError("this system does not say how much memory is free; give --chunk a number, such as 64")
    # Where nothing says how much is free, half of all there is.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _group(root: Path) -> int:
    """What the limit of a container leaves, which the machine's own numbers do not know."""
    left = [sys.maxsize]
    for folder, limit, used, files in _LIMITS:
        try:
            texts = [(root / folder / name).read_text(encoding="utf-8") for name in (limit, used, "memory.stat")]
            kept = dict(line.split() for line in texts[2].splitlines()).get(files, "0")
            left.append(int(texts[0]) - int(texts[1]) + int(kept))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return min(left)


_LIMITS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
