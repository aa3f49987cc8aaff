"""Memory for the pixels of several batches, shared by the trainer and its loader process."""

import mmap
import os
import tempfile
import time
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a ring holds: ``slots`` batches of ``(views, rows, 3, side, side)`` uint8, and a watch over the threads."""

    slots: int
    views: int
    rows: int
    side: int
    threads: int

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Of one slot."""
        return self.views, self.rows, 3, self.side, self.side

    @property
    def watch_bytes(self) -> int:
        """Of the watch, which stands before the slots."""
        return -(-16 * self.threads // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def slot_bytes(self) -> int:
        """From the start of a slot to that of the next."""
        return -(-int(np.prod(self.shape)) // mmap.PAGESIZE) * mmap.PAGESIZE


class Watch:
    """Which position each thread is reading, and since when; written without a lock, read from any process."""

    def __init__(self, cells: NDArray[np.float64]) -> None:
        self.cells = cells

    @classmethod
    def alone(cls, threads: int) -> "Watch":
        """A watch of this process only."""
        return cls(np.zeros((threads, 2)))

    def begin(self, thread: int, position: int) -> None:
        """A thread starts to read."""
        self.cells[thread] = position, time.monotonic()

    def end(self, thread: int) -> None:
        """A thread has read what it was reading."""
        self.cells[thread, 1] = 0

    def longest(self) -> tuple[int, float] | None:
        """The position that is being read for the longest time, and for how many seconds; None if none is."""
        cells = self.cells[self.cells[:, 1] > 0]
        if not len(cells):
            return None
        position, since = cells[cells[:, 1].argmin()]
        return int(position), time.monotonic() - since


class Ring:
    """Slots of pixels in memory that has no name: it is gone with the last process that has it, however that ends.

    `lend` gives the tensor of a slot and notes when nothing refers to it any more; then `reclaimed` has it again.
    """

    def __init__(self, room: Room, *, fd: int) -> None:
        self.room = room
        self._memory = mmap.mmap(fd, room.watch_bytes + room.slots * room.slot_bytes)
        cells = np.frombuffer(self._memory, dtype=np.float64, count=2 * room.threads).reshape(room.threads, 2)
        self.watch = Watch(cells)
        self._returned: deque[int] = deque()
        self._copying: deque[tuple[int, torch.cuda.Event]] = deque()
        self._pinned = False

    def slot(self, number: int) -> Tensor:
        """The pixels of a slot."""
        return torch.from_numpy(self._array(number))

    def lend(self, number: int) -> Tensor:
        """The pixels of a slot, which is this caller's until no tensor refers to them."""
        array = self._array(number)
        weakref.finalize(array, self._returned.append, number).atexit = False
        return torch.from_numpy(array)

    def reclaimed(self, *, wait: bool = False) -> list[int]:
        """The slots that came back since the last call; with ``wait``, after the copies to the device that use them."""
        slots: list[int] = []
        while self._returned:
            number = self._returned.popleft()
            if self._pinned:
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
                self._copying.append((number, event))
            else:
                slots.append(number)
        while self._copying and (wait or self._copying[0][1].query()):  # type: ignore[no-untyped-call]
            number, event = self._copying.popleft()
            event.synchronize()
            slots.append(number)
        return slots

    def pin(self) -> None:
        """Let the device copy from the ring while the trainer goes on."""
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        self._pinned = int(runtime.cudaHostRegister(*self._span(), 0)) == 0

    def unpin(self) -> None:
        """Undo `pin`, after the last copy."""
        if self._pinned:
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self._span()[0])  # type: ignore[no-untyped-call]
            self._pinned = False

    def _span(self) -> tuple[int, int]:
        everything = np.frombuffer(self._memory, dtype=np.uint8)
        return everything.ctypes.data, everything.nbytes

    def _array(self, number: int) -> NDArray[np.uint8]:
        room = self.room
        start = room.watch_bytes + number * room.slot_bytes
        flat = np.frombuffer(self._memory, dtype=np.uint8, count=int(np.prod(room.shape)), offset=start)
        return flat.reshape(room.shape)


def nameless(room: Room) -> int:
    """A descriptor of fresh shared memory for a ring; the caller closes it once both sides have mapped it."""
    if hasattr(os, "memfd_create"):
        # Unlike /dev/shm, which containers keep small, this is limited by the memory alone.
        fd = os.memfd_create("unicl-ring")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, room.watch_bytes + room.slots * room.slot_bytes)
    return fd
