"""Tars from elsewhere: ``https://`` addresses and ``pipe:`` commands, fetched once into a bounded local folder."""

import os
import re
import select
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from http.client import HTTPException
from pathlib import Path
from typing import IO, Final, Protocol
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from unicl.data.locks import exclusive
from unicl.data.tars.offsets import cache_folder
from unicl.errors import UserError

PIPE: Final = "pipe:"
GIGABYTES: Final = 200.0
"""How much is kept at most if ``UNICL_CACHE_GB`` says nothing."""

AT_ONCE: Final = 4
PART: Final = ".part"
LOCK: Final = ".lock"
CHUNK: Final = 1 << 20
PASSING: Final = (408, 425, 429)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often a failing source is tried again, after so many seconds each, and how long it may send nothing."""

    delays: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    stall: float = 60.0


class _Failed(Exception):
    """An attempt that may go better the next time."""


class Room(Protocol):
    """Where fetched bytes go."""

    def take(self, size: int) -> None:
        """Count bytes that are about to be written. Raises `UserError` if they do not fit."""


class _Room:
    """How many bytes may still be kept; shared by threads."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.limit = folder, cache_limit()
        used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self._left = self.limit - used
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Count bytes that are about to be written. Raises `UserError` if they do not fit."""
        with self._lock:
            self._left -= size
            if self._left < 0:
                raise UserError(
                    f"the fetched tars in {self.folder} fill the {self.limit / 1e9:g} GB they may take; remove those "
                    "you no longer need, or allow more: UNICL_CACHE_GB=500; with ?stream=true not all of them are kept",
                    code=1,
                )


def fetch_all(addresses: Sequence[str], *, name: str, patience: Patience = Patience()) -> tuple[Path, ...]:
    """The local copies of some tars, fetched unless they are there; ``name`` is that of the source.

    Any number of processes may ask at once: one of them fetches. An attempt that fails or stalls is made again, of
    https from where it stopped. Raises `UserError` with the address if it does not get better, and if the disk or
    ``UNICL_CACHE_GB`` is full. What is there is used as it is: remove the folder to fetch it again. What a command
    gave is kept for the folder that it ran in.
    """
    top = cache_folder() / "remote"
    paths = local_paths(addresses, name=name, top=top)
    folder = paths[0].parent
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch = partial(_fetch, room=_Room(top), patience=patience)
        shown = Progress(
            *columns, console=Console(stderr=True), transient=True, disable=all(p.is_file() for p in paths)
        )
        with shown as bar, ThreadPoolExecutor(AT_ONCE) as pool:
            task = bar.add_task(f"fetching {name}", total=len(paths))
            for _ in pool.map(fetch, addresses, paths):
                bar.advance(task)
    except OSError as error:
        raise UserError(f"cannot keep fetched tars in {str(folder)!r}: {error.strerror or error}", code=1) from error
    return tuple(paths)


def local_paths(addresses: Sequence[str], *, name: str, top: Path) -> tuple[Path, ...]:
    """Where the copies of some tars stand: in one folder below ``top`` that no other addresses have."""
    # A command may name files from where it runs.
    here = [str(Path.cwd())] if any(address.startswith(PIPE) for address in addresses) else []
    mark = blake2b("\0".join([*addresses, *here]).encode(), digest_size=8).hexdigest()
    folder = top / f"{re.sub(r'[^0-9A-Za-z._-]+', '_', name)[:60]}-{mark}"
    return tuple(folder / file for file in _names(addresses))


def fetch(address: str, path: Path, *, room: Room, patience: Patience) -> None:
    """Fetch one tar, for a caller that holds `one_at_a_time`; ``path`` is there only when it is whole.

    Raises `UserError` with the address if no attempt succeeds or if it gives no tar, and `OSError` of the disk.
    """
    part = path.with_name(f"{path.name}{PART}")
    try:
        _attempts(address, part, room=room, patience=patience)
        if not tarfile.is_tarfile(part):
            with part.open("rb") as file:
                raise UserError(f"what {address} gives is no tar, it begins with {file.read(40)!r}", code=1)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _fetch(address: str, path: Path, *, room: Room, patience: Patience) -> None:
    with one_at_a_time(path):
        if not path.is_file():
            fetch(address, path, room=room, patience=patience)


def _attempts(address: str, part: Path, *, room: Room, patience: Patience) -> None:
    part.write_bytes(b"")
    version: list[str] = []
    reason = ""
    for delay in (0.0, *patience.delays):
        time.sleep(delay)
        try:
            if address.startswith(PIPE):
                _from_pipe(address, part, room=room, stall=patience.stall)
            else:
                _from_web(address, part, room=room, stall=patience.stall, version=version)
        except _Failed as error:
            reason = str(error)
        else:
            return
    raise UserError(f"{address} cannot be fetched, tried {len(patience.delays) + 1} times: {reason}", code=1)


def _from_web(address: str, part: Path, *, room: Room, stall: float, version: list[str]) -> None:
    """Fetch what is missing of a file, if it is of the same ``version`` as what is there; else all of it."""
    have = part.stat().st_size
    ask = {"Range": f"bytes={have}-", "If-Range": version[-1]} if have and version else {}
    try:
        with urlopen(Request(address, headers=ask), timeout=stall) as answer:
            resumed = bool(ask) and answer.status == 206
            version[:] = filter(None, [answer.headers.get("ETag") or answer.headers.get("Last-Modified")])
            wanted = answer.headers.get("Content-Length")
            room.take(0 if resumed else -have)
            with part.open("ab" if resumed else "wb") as file:
                got = _copy(answer, file, room=room)
        if wanted is not None and got != int(wanted):
            raise _Failed(f"it ended after {got:,} of {int(wanted):,} bytes")
    except HTTPError as error:
        if error.code < 500 and error.code not in PASSING:
            raise UserError(f"{address} cannot be fetched: {error.code} {error.reason}", code=1) from error
        raise _Failed(f"{error.code} {error.reason}") from error
    except TimeoutError as error:
        raise _Failed(f"nothing came for {stall:g} s") from error
    except (URLError, ConnectionError, HTTPException) as error:
        raise _Failed(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _from_pipe(address: str, part: Path, *, room: Room, stall: float) -> None:
    """Run a command and keep what it prints."""
    room.take(-part.stat().st_size)
    with tempfile.TemporaryFile() as said, part.open("wb") as file:
        process = subprocess.Popen(
            address.removeprefix(PIPE), shell=True, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        )
        assert process.stdout is not None
        try:
            got = _copy(process.stdout, file, room=room, stall=stall)
            code = process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()
            process.wait()
        said.seek(0)
        words = said.read().decode("utf-8", "replace").strip().splitlines()
    if code != 0:
        raise _Failed(f"the command ended with status {code}{': ' + words[-1][:200] if words else ''}")
    if not got:
        raise _Failed("the command printed nothing")


def _copy(source: IO[bytes], file: IO[bytes], *, room: Room, stall: float | None = None) -> int:
    """Copy to the end; with ``stall``, of a source that is a pipe, no longer than so many seconds for a piece."""
    got = 0
    while True:
        if stall is not None and not select.select([source], [], [], stall)[0]:
            raise _Failed(f"nothing came for {stall:g} s")
        piece = os.read(source.fileno(), CHUNK) if stall is not None else source.read(CHUNK)
        if not piece:
            return got
        room.take(len(piece))
        file.write(piece)
        got += len(piece)


def _names(addresses: Sequence[str]) -> list[str]:
    """A file name for each address: its own, with a number if it comes again."""
    seen: Counter[str] = Counter()
    names = []
    for number, address in enumerate(addresses):
        own = re.findall(r"([^\s/'\"=?&]+\.(?:tar(?:\.\w+)?|tgz))\b", address)
        name = own[-1] if own else f"{number:04}.tar"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{seen[name]}-{name}")
    return names


def cache_limit() -> float:
    """How many bytes fetched tars may take: ``UNICL_CACHE_GB``. Raises `UserError` if it is not a number."""
    typed = os.environ.get("UNICL_CACHE_GB") or str(GIGABYTES)
    try:
        return float(typed) * 1e9
    except ValueError as error:
        raise UserError(f"UNICL_CACHE_GB={typed!r} is not a number of gigabytes, such as 200") from error


@contextmanager
def one_at_a_time(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Let one thread of one process fetch a file while the others wait, or else get a `BlockingIOError`."""
    with path.with_name(f"{path.name}{LOCK}").open("ab") as lock:
        exclusive(lock.fileno(), wait=wait)
        yield
