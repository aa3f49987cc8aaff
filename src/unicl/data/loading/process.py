"""The loader process: one beside each trainer, whose threads write pixels into memory that both share."""

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch
from torch import Tensor

from unicl.data.loading.loader import Pace, Patience, in_order
from unicl.data.loading.ring import Ring, Room, Watch, nameless
from unicl.data.loading.team import Made, Maker, Team
from unicl.errors import UserError

_START = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from unicl.data.loading.process import serve
serve(connection, parent=int(sys.argv[2]))
"""
"""The program of the process. It starts no copy of the user's script, which needs no guard around its main part."""


_START_SECONDS = 120.0
_READY = -1
"""The step of the first answer: the process has what makes the batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parcel:
    """What crosses the border for a step: all of its batch but the pixels, which ``images`` rows of its slot hold."""

    made: Made
    images: int
    views: bool


def by_process(
    maker: Maker, steps: range, *, shape: Sequence[int], pace: Pace, device: torch.device = torch.device("cpu")
) -> Iterator[Made]:
    """The batches of the steps, made by threads of one process beside this one; equal to those of `by_threads`.

    Pixels are written once, and the batch is a view of them. Their memory is used again when no tensor refers to it
    any more, so that a batch never changes while it is held; a caller that keeps many is given copies. On CUDA the
    memory is pinned. Raises `UserError` if a read fails or stalls, or if the process ends.
    """
    views, rows, _, side, _ = shape
    room = Room(slots=pace.ahead + 2, views=views, rows=rows, side=side, threads=pace.threads)
    trainer = _Trainer(steps, room=room)
    trainer.patience = patience = Patience(maker, trainer.ring.watch, stall=pace.stall)
    try:
        trainer.begin(maker, device=device)
        starting = Patience(maker, trainer.ring.watch, stall=max(pace.stall, _START_SECONDS))
        next(in_order(range(_READY, 0), trainer.receive, patience=starting))
        for step, parcel in in_order(steps, trainer.receive, patience=patience):
            yield trainer.handed(step, parcel)
    finally:
        trainer.close()


def serve(connection: Connection, *, parent: int) -> NoReturn:
    """The loader process: makes steps into slots as it is asked, until the trainer is gone."""
    torch.set_num_threads(1)
    post = _Post(connection)
    with suppress(EOFError, OSError):  # the trainer is gone
        fd, room = connection.recv()
        ring = Ring(room, fd=fd)
        os.close(fd)
        team = _team(connection.recv_bytes(), post=post, watch=ring.watch)
        while _asked(connection, parent=parent):
            step, slot = connection.recv()
            if team is not None:
                team.start(step, out=ring.slot(slot), done=lambda *answer: post.put(_packed(*answer)))
    # Threads may be in the middle of a read; nothing that they do needs an end.
    os._exit(0)


def _team(content: bytes, *, post: "_Post", watch: Watch) -> Team | None:
    try:
        maker: Maker = pickle.loads(content)
    # What users bring along can fail in any way when it is made again here.
    except Exception as error:
        post.put((_READY, UserError(_not_sent(error), code=1)))
        return None
    post.put((_READY, None))
    return Team(maker, watch=watch)


def _asked(connection: Connection, *, parent: int) -> bool:
    while not connection.poll(2.0):
        if os.getppid() != parent:
            return False
    return True


def _packed(step: int, made: Made | UserError) -> tuple[int, _Parcel | UserError]:
    if isinstance(made, UserError):
        return step, made
    batch = made.batch
    light = replace(made, batch=replace(batch, images=batch.images[:0].clone(), views=None))
    return step, _Parcel(made=light, images=len(batch.images), views=batch.views is not None)


def _not_sent(error: Exception) -> str:
    return (
        f"the loader process cannot be given this data ({type(error).__name__}: {error}); "
        "load by threads instead: --set data.loader=threads"
    )


class _Post:
    """Sends from a thread of its own, so that neither side ever waits for the other to read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._letters: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._send, name="unicl-post", daemon=True).start()

    def put(self, letter: Any) -> None:
        content = BytesIO()
        pickler = pickle.Pickler(content, protocol=5)
        # Not torch's own way for tensors, which is made for files and for sharing, and slow for small ones.
        pickler.dispatch_table = {Tensor: _reduced}
        pickler.dump(letter)
        self._letters.put(content.getvalue())

    def _send(self) -> None:
        with suppress(OSError):  # the other side is gone, and its reader knows
            while True:
                self._connection.send_bytes(self._letters.get())


def _reduced(tensor: Tensor) -> tuple[Any, tuple[Any]]:
    return torch.from_numpy, (tensor.contiguous().numpy(),)


class _Trainer:
    """The trainer's side: which slot each step is made in, and which are free."""

    patience: Patience

    def __init__(self, steps: range, *, room: Room) -> None:
        self.to_begin = iter(steps)
        self.free = list(range(room.slots))
        self.slots: dict[int, int] = {}
        fd = nameless(room)
        try:
            self.ring = Ring(room, fd=fd)
            self.connection, self.process = _started(fd)
        finally:
            os.close(fd)
        self.post = _Post(self.connection)
        self.post.put(sys.path)
        self.post.put((fd, room))

    def begin(self, maker: Maker, *, device: torch.device) -> None:
        """Send what makes the batches, and ask for the first of them."""
        try:
            self.post.put(maker)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UserError(_not_sent(error), code=1) from error
        if device.type == "cuda":
            self.ring.pin()
        self.ask()

    def ask(self) -> None:
        """Have the next steps made in the slots that are free."""
        self.free += self.ring.reclaimed(wait=not self.slots)
        while self.free and (step := next(self.to_begin, None)) is not None:
            self.slots[step] = self.free.pop()
            self.post.put((step, self.slots[step]))

    def receive(self, seconds: float) -> tuple[int, Any] | None:
        """An answer, if one comes in time."""
        self.ask()
        try:
            if not self.connection.poll(seconds):
                return None
            step, answer = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise UserError(self.obituary(), code=1) from error
        return step, answer

    def handed(self, step: int, parcel: _Parcel) -> Made:
        """The batch of a step with its pixels; copied if it would leave no slot to go on with."""
        slot = self.slots.pop(step)
        self.ask()
        made, count = parcel.made, parcel.images
        if not count:
            self.free.append(slot)
            return made
        pixels = self.ring.lend(slot) if self.slots or self.free else None
        if pixels is None:
            pixels = self.ring.slot(slot)[:, :count].clone()
            self.free.append(slot)
        views = pixels[1, :count] if parcel.views else None
        return replace(made, batch=replace(made.batch, images=pixels[0, :count], views=views))

    def obituary(self) -> str:
        """How the process ended, and what it was reading then."""
        reading = self.patience.reading()
        try:
            status = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            status = 0
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        why = " (when memory is short, the system does that)" if status == -signal.SIGKILL else ""
        return (
            f"the loader process {how}{why}; last, {reading}. The last checkpoint is whole: go on with --resume; "
            "fewer --set data.workers or data.ahead need less memory"
        )

    def close(self) -> None:
        """End the process, which has nothing to lose, and give the memory back."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.ring.unpin()


def _started(fd: int) -> tuple[Connection, "subprocess.Popen[bytes]"]:
    """A process that has the memory ``fd`` and the other end of a connection; a Ctrl-C does not reach it."""
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [sys.executable, "-c", _START, str(theirs.fileno()), str(os.getpid())]
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            pass_fds=(fd, theirs.fileno()),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            process_group=0,
        )
    return Connection(ours.detach()), process
