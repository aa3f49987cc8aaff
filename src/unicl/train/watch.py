"""All or none: what stops one process stops all of them, and one says why, by rank and step."""

import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

import torch.distributed as dist

from unicl.errors import UserError
from unicl.train.ranks import Ranks, gather_objects

CALL_SECONDS: Final = 20.0
"""How long silent processes are waited for before they count as lost; torchrun kills after 30."""
LINGER_SECONDS: Final = 3.0
"""How long a process that fails first stays, so that the others can still ask it why."""
_TOLD, _HERE = "unicl/told", "unicl/here"
_BROKEN = re.compile(r"gloo|nccl|connection|timed? ?out|broken pipe|reset by peer|store|process group", re.IGNORECASE)


@contextmanager
def together(*, ranks: Ranks, doing: str) -> Iterator[None]:
    """Work that each process does alone: if it fails on one, all raise the same `UserError`, and nobody waits.

    Nothing inside may wait for another process. On one process, errors stay as they are.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if ranks.size == 1:
            raise
        failure = error
    if ranks.size > 1:
        agree(failure, ranks=ranks, doing=doing)


def agree(failure: BaseException | None, *, ranks: Ranks, doing: str) -> None:
    """Raise the same `UserError` on all processes if one gives a failure, which names the ranks that did."""
    said = gather_objects(None if failure is None else (_text(failure), _code(failure)), ranks=ranks)
    failed = {rank: each for rank, each in enumerate(said) if each is not None}
    if not failed:
        return
    text, code = next(iter(failed.values()))
    # What happens to all of them alike is not the fault of one.
    alike = len(failed) == ranks.size and len(set(failed.values())) == 1
    which = "" if alike else f"{_ranks(failed)}, {doing}: "
    raise UserError(f"{which}{text}", code=code) from failure


@contextmanager
def guard(*, ranks: Ranks, where: Callable[[], str]) -> Iterator[None]:
    """Around work that processes do together: whatever ends it on one ends it on all, with one plain message.

    The process that fails says so to the others before it leaves; where one says nothing (it was killed, or hangs
    for longer than `unicl.train.ranks.patience`), the others call the roll. ``where`` is such as "at step 7".
    """
    if ranks.size == 1:
        yield
        return
    store = dist.distributed_c10d._get_default_store()
    try:
        yield
    except (GeneratorExit, SystemExit):
        raise
    except BaseException as error:
        if broken(error):
            raise _ask(store, ranks=ranks, where=where()) from error
        told = _tell(error, store, ranks=ranks, where=where())
        if told is error:
            raise
        raise told from error


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Ctrl-C and a scheduler's SIGTERM end the step in hand first; a second one ends at once."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def broken(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached, which torch says in many ways."""
    kinds = (RuntimeError, dist.DistError) if isinstance(error, Exception) else (BaseException,)
    return isinstance(error, kinds) and not isinstance(error, KeyboardInterrupt) and bool(_BROKEN.search(str(error)))


def _tell(error: BaseException, store: Any, *, ranks: Ranks, where: str) -> BaseException:
    """Leave a message for the others, let go of them, and stay until they have read it."""
    text = _text(error) if isinstance(error, UserError) else f"{_ranks([ranks.rank])} failed {where}: {_text(error)}"
    first = False
    with suppress(RuntimeError):
        own = f"{ranks.rank} {text}"
        first = store.compare_set(_TOLD, "", own).decode() == own
        dist.destroy_process_group()
        store.add(_HERE, 1)
        _until(lambda: store.add(_HERE, 0) >= ranks.size, seconds=LINGER_SECONDS if ranks.first else 0.0)
    if isinstance(error, UserError):
        return UserError(text, code=error.code, silent=not first)
    error.add_note(f"unicl: {_ranks([ranks.rank])}, {where}")
    return error


def _ask(store: Any, *, ranks: Ranks, where: str) -> UserError:
    """Why the connection to another process broke: what it said, or who does not answer."""
    missing = [rank for rank in range(ranks.size) if rank != ranks.rank]
    try:
        store.set(f"{_HERE}/{ranks.rank}", "")
        store.add(_HERE, 1)

        def called() -> bool:
            missing[:] = [rank for rank in missing if not store.check([f"{_HERE}/{rank}"])]
            # Somebody is lost, so that one who is left over is the one.
            return store.check([_TOLD]) or len(missing) <= 1

        _until(called, seconds=CALL_SECONDS)
        if store.check([_TOLD]):
            _, reason = store.get(_TOLD).decode().split(" ", 1)
            return UserError(f"stopped {where}: {reason}", code=1, silent=True)
    except RuntimeError:  # the store went with the process that kept it, the first one unless torchrun does
        missing = [0] if not ranks.first else missing
    text = f"{_ranks(missing)} {'does' if len(missing) == 1 else 'do'} not answer {where}: killed, crashed or hanging"
    speaks = ranks.rank == min(set(range(ranks.size)) - set(missing), default=ranks.rank)
    return UserError(text, code=1, silent=not speaks)


def _until(reached: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not reached() and time.monotonic() < end:
        time.sleep(0.05)


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".removesuffix(": ")


def _code(error: BaseException) -> int:
    return error.code if isinstance(error, UserError) else 1


def _ranks(numbers: Iterable[int]) -> str:
    known = [str(number) for number in numbers]
    return f"rank {known[0]}" if len(known) == 1 else f"ranks {', '.join(known[:-1])} and {known[-1]}"
