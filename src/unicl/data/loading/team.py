"""Threads that read the samples of several steps at a time and put each step's batch together."""

import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from unicl.data.loading.ring import Watch
from unicl.errors import UserError
from unicl.space import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The batch of a step, and the samples that could not be read for it with the reasons."""

    batch: Batch
    bad: tuple[tuple[str, str], ...] = ()


class Maker(Protocol):
    """What makes batches (a `Stream`): pure functions of position and step, called from any thread."""

    def positions(self, step: int) -> range:
        """The positions that a step's batch is made of."""

    def draw(self, position: int, *, out: Tensor | None) -> Any:
        """Read one; its pixels go to ``out``, ``(views, 3, side, side)``."""

    def collate(self, step: int, *, drawn: Sequence[Any], out: Tensor | None) -> Made:
        """The batch of all that was drawn; its images are ``out``, ``(views, rows, 3, side, side)``."""

    def name(self, position: int) -> str:
        """The source and sample at a position, for messages."""


Done = Callable[[int, Made | UserError], None]
"""Called from a thread of the team with a step and its batch, or with what went wrong."""


@dataclass(slots=True, kw_only=True)
class _Work:
    """A step in the making."""

    step: int
    positions: range
    out: Tensor | None
    done: Done
    drawn: list[Any]
    left: int
    wrong: UserError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Team:
    """A fixed number of threads. They are daemons: one that hangs in a read keeps no process from its end."""

    def __init__(self, maker: Maker, *, watch: Watch) -> None:
        self._maker, self._watch = maker, watch
        self._tasks: queue.SimpleQueue[tuple[_Work, int] | None] = queue.SimpleQueue()
        self._ended = False
        self._threads = [
            threading.Thread(target=self._run, args=(k,), name=f"unicl-loader-{k}", daemon=True)
            for k in range(len(watch.cells))
        ]
        for thread in self._threads:
            thread.start()

    def start(self, step: int, *, out: Tensor | None, done: Done) -> None:
        """Begin with a step, after those that were started before."""
        positions = self._maker.positions(step)
        count = len(positions)
        work = _Work(step=step, positions=positions, out=out, done=done, drawn=[None] * count, left=count)
        for row in range(count):
            self._tasks.put((work, row))

    def close(self, *, patience: float = 5.0) -> None:
        """Drop what is not begun, and wait for the threads as long as they read no longer than ``patience`` seconds."""
        self._ended = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(patience)

    def _run(self, number: int) -> None:
        while (task := self._tasks.get()) is not None:
            if not self._ended:
                self._draw(*task, number=number)
            del task  # or the thread would hold the pixels of a finished step

    def _draw(self, work: _Work, row: int, *, number: int) -> None:
        position = work.positions[row]
        self._watch.begin(number, position)
        try:
            out = None if work.out is None else work.out[:, row]
            work.drawn[row] = self._maker.draw(position, out=out)
        except BaseException as error:  # handed to the consumer, who raises it
            work.wrong = failure(f"reading {self._maker.name(position)}", error)
        finally:
            self._watch.end(number)
        with work.lock:
            work.left -= 1
            last = work.left == 0
        if last:
            work.done(work.step, self._collated(work))

    def _collated(self, work: _Work) -> Made | UserError:
        if work.wrong is not None:
            return work.wrong
        try:
            return self._maker.collate(work.step, drawn=work.drawn, out=work.out)
        except BaseException as error:  # handed to the consumer, who raises it
            return failure(f"making the batch of step {work.step}", error)


def failure(doing: str, error: BaseException) -> UserError:
    """An error of a loader thread in one line: what it was doing, what went wrong and where."""
    if isinstance(error, UserError):
        return error
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(place[0].filename).name}, line {place[0].lineno})" if place else ""
    text = (str(error).splitlines() or [""])[0][:200]
    told = UserError(
        f"{doing} failed: {type(error).__name__}: {text}{where}. This is no fault that leaves a sample out by itself; "
        "take the sample away, or report this line. The last checkpoint is whole: go on with --resume",
        code=1,
    )
    told.__cause__ = error
    return told
