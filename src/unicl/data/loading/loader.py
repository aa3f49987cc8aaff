"""Batches made ahead of time, in order, by threads of this process; and when a process of its own pays instead."""

import os
import queue
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from unicl.data.loading.ring import Watch
from unicl.data.loading.team import Made, Maker, Team
from unicl.errors import UserError

LoaderKind = Literal["auto", "threads", "process"]
"""Where batches are made: in this process, or in one beside it; auto is what pays."""

SMALL = 4096
"""A run that reads fewer images than this is over before a loader process pays for its start."""

FEW_CORES = 4
"""With so many cores or fewer, a trainer on the CPU needs them all and there is nothing to win beside it."""

T = TypeVar("T")
Receive = Callable[[float], tuple[int, T | UserError] | None]
"""The next answer (a step, and what came of it) if one comes in so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """``threads`` that read, batches ``ahead`` of the one in use, and after how many seconds without one to ``stall``.

    A wait of a tenth of ``stall`` is told on the terminal with the name of what is being read, all of it is an error.
    """

    threads: int
    ahead: int
    stall: float = 300.0


class Patience:
    """How long to wait for a batch, and what to say then.

    ``lost`` is true once patience has ended; ``glance`` is how many seconds to wait before looking again.
    """

    def __init__(self, maker: Maker, watch: Watch, *, stall: float) -> None:
        self._maker, self._watch, self._stall = maker, watch, stall
        self._told = False
        self.lost = False
        self.glance = min(1.0, stall / 10)

    def check(self, waited: float) -> None:
        """Tell the user of a long wait, once each; raises `UserError` when it is too long."""
        if waited > self._stall:
            self.lost = True
            raise UserError(
                f"no batch came for {waited:.0f} s: {self.reading()}. If its disk or network is only slow, allow more "
                "with --set data.stall=SECONDS. The last checkpoint is whole: go on with --resume",
                code=1,
            )
        told, self._told = self._told, waited > self._stall / 10
        if self._told and not told:
            print(f"waiting for data for {waited:.0f} s: {self.reading()}", file=sys.stderr, flush=True)

    def reading(self) -> str:
        """What is being read now, by its source and name."""
        longest = self._watch.longest()
        if longest is None:
            return "nothing is being read"
        position, seconds = longest
        return f"{self._maker.name(position)} is being read for {seconds:.0f} s"


def cores_here() -> int:
    """The cores that this process may use, shared with the other processes of the run on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def pays(*, images: int, device: torch.device, cores: int) -> bool:
    """Whether a process of its own is the faster loader: beside an accelerator, or where cores are left over.

    Threads in the trainer's process take turns with it in Python, which halved the speed of a GPU's training in the
    case study of SPDL (arXiv 2504.20067); on few cores, the copy of the program in a second process is only a cost.
    """
    return os.name == "posix" and images >= SMALL and (device.type != "cpu" or cores > FEW_CORES)


def in_order(steps: range, receive: Receive[T], *, patience: Patience) -> Iterator[tuple[int, T]]:
    """What was made of each step, in order; raises the `UserError` of a step when its turn comes."""
    early: dict[int, T | UserError] = {}
    for step in steps:
        since = time.monotonic()
        while step not in early:
            answer = receive(patience.glance)
            if answer is None:
                patience.check(time.monotonic() - since)
            else:
                early[answer[0]] = answer[1]
        made = early.pop(step)
        if isinstance(made, UserError):
            raise made
        yield step, made
        del made


def by_threads(maker: Maker, steps: range, *, shape: Sequence[int] | None, pace: Pace) -> Iterator[Made]:
    """The batches of the steps, made by threads of this process, each in memory of its own.

    ``shape`` is that of a batch's pixels, None if there are none. Raises `UserError` if a read fails or stalls.
    """
    answers: queue.SimpleQueue[tuple[int, Made | UserError]] = queue.SimpleQueue()
    watch = Watch.alone(pace.threads)
    team = Team(maker, watch=watch)
    patience = Patience(maker, watch, stall=pace.stall)
    to_begin = iter(steps)

    def begin(count: int) -> None:
        for _, step in zip(range(count), to_begin, strict=False):
            out = None if shape is None else torch.empty(tuple(shape), dtype=torch.uint8)
            team.start(step, out=out, done=lambda *answer: answers.put(answer))

    def receive(seconds: float) -> tuple[int, Made | UserError] | None:
        try:
            return answers.get(timeout=seconds)
        except queue.Empty:
            return None

    try:
        begin(pace.ahead + 1)
        for _, made in in_order(steps, receive, patience=patience):
            begin(1)
            yield made
    finally:
        team.close(patience=0.0 if patience.lost else 5.0)
