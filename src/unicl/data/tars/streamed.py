"""Tars from elsewhere that are more than the disk holds: a bounded shelf where they come and go."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from shutil import disk_usage
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from unicl.data.tars.offsets import ENDING, cache_folder
from unicl.data.tars.remote import AT_ONCE, LOCK, PART, Patience, cache_limit, fetch, one_at_a_time
from unicl.errors import BadImage, UserError
from unicl.space import RemoteTar, Streamed

_GLANCE: Final = 0.05
_TRIES: Final = 10


class Shelf:
    """Copies of remote tars in a folder, shared by all processes that use it; the longest unused goes first.

    It takes what ``UNICL_CACHE_GB`` says, and what the disk has. Whatever is read, in whatever order, is right: a tar
    that is not here is fetched when it is asked for. `expect` only makes that rare.
    """

    def __init__(self, folder: Path, *, patience: Patience = Patience()) -> None:
        self.folder, self._patience = folder, patience
        self._lock = threading.Lock()
        self._expected: tuple[RemoteTar, ...] = ()
        self._to_fetch: list[RemoteTar] = []
        self._helpers = 0
        self._largest = 0

    def read(self, image: Streamed) -> bytes:
        """The bytes of a member. Raises `UserError` with the address if its tar cannot be had."""
        path = image.tar.path
        try:
            file = path.open("rb")
        except FileNotFoundError:
            with self.held(image.tar):
                file = path.open("rb")
        with file:
            # The time of change is that of the last use: it says which tar goes first.
            with suppress(OSError):
                os.utime(path)
            file.seek(image.offset)
            content = file.read(image.size)
        if len(content) < image.size:
            raise BadImage("cut off")
        return content

    @contextmanager
    def held(self, tar: RemoteTar) -> Iterator[None]:
        """Have a tar here, fetched if need be, and let nobody remove it meanwhile."""
        try:
            with self._alone(tar):
                if not tar.path.is_file():
                    self._admit(tar)
                    self._fetch(tar)
                yield
        except OSError as error:
            raise UserError(
                f"cannot keep {tar.address} in {str(self.folder)!r}: {error.strerror or error}", code=1
            ) from error

    def each(self, tars: Sequence[RemoteTar], *, name: str) -> Iterator[RemoteTar]:
        """Hold one tar after the other, fetching the next ones meanwhile; ``name`` is that of the source."""
        self._largest = 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not tars) as bar:
            task = bar.add_task(f"looking through {name}", total=len(tars))
            for number, tar in enumerate(tars):
                self.expect(tuple(tars[number : number + 2 * AT_ONCE]))
                with self.held(tar):
                    yield tar
                bar.advance(task)

    def expect(self, tars: tuple[RemoteTar, ...]) -> None:
        """Say which tars are needed next, in order: those that are not here are fetched as far as there is room."""
        if tars is self._expected:
            return
        missing = [tar for tar in tars if not tar.path.is_file()]
        with self._lock:
            self._expected, self._to_fetch = tars, missing
            wanted = min(AT_ONCE, len(missing))
            new, self._helpers = wanted - self._helpers, max(wanted, self._helpers)
        for _ in range(new):
            threading.Thread(target=self._help, name="unicl-fetch", daemon=True).start()

    def _help(self) -> None:
        while True:
            # Whoever needs the tar asks again, and is told what is wrong.
            with suppress(UserError, OSError), ExitStack() as stack:
                tar = self._next(stack)
                if tar is None:
                    return
                self._fetch(tar)

    def _next(self, stack: ExitStack) -> RemoteTar | None:
        """The next tar to fetch ahead, locked, with room made for it; None if that would cost one needed sooner."""
        with self._lock:
            while self._to_fetch:
                tar = self._to_fetch.pop(0)
                try:
                    stack.enter_context(self._alone(tar, wait=False))
                except BlockingIOError:  # another is at it
                    continue
                if tar.path.is_file():
                    stack.close()
                elif self._size(tar) and self._takes(tar, ahead=True):
                    return tar
                else:
                    self._to_fetch.clear()
            self._helpers -= 1
            return None

    @contextmanager
    def _alone(self, tar: RemoteTar, *, wait: bool = True) -> Iterator[None]:
        tar.path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(tar.path, wait=wait):
            try:
                yield
            finally:
                _reserve(tar.path, 0)

    def _admit(self, tar: RemoteTar) -> None:
        """Make room for a tar that is needed now: at any cost, and beyond the limit if others hold all that is here."""
        _Measure(tar).take(tar.size)
        tries = 0
        while not self._takes(tar, ahead=False):
            # Those on their way may go again when they have been read.
            tries = 0 if self._reserved() else tries + 1
            if tries == _TRIES:
                _reserve(tar.path, self._size(tar))
                return
            time.sleep(_GLANCE)

    def _takes(self, tar: RemoteTar, *, ahead: bool) -> bool:
        """Whether there is room for a tar, or can be made; it is reserved then, so that other processes see it."""
        with one_at_a_time(self.folder / "room"):
            free = self._make_room(self._size(tar), ahead=ahead)
            if free:
                _reserve(tar.path, self._size(tar))
            return free

    def _reserved(self) -> dict[Path, int]:
        """The bytes of each tar that is being fetched, or held after it, by any process."""
        sizes = {_tar_of(path): size for path, (size, _) in _files(self.folder).items() if path.name.endswith(LOCK)}
        return {tar: size for tar, size in sizes.items() if size and not _released(tar)}

    def _size(self, tar: RemoteTar) -> int:
        # Nobody knows the size of a tar before it has been looked through; those of a source are alike.
        return tar.size or self._largest

    def _fetch(self, tar: RemoteTar) -> None:
        fetch(tar.address, tar.path, room=_Measure(tar), patience=self._patience)
        size = tar.path.stat().st_size
        if tar.size and size != tar.size:
            tar.path.unlink()
            raise UserError(
                f"{tar.address} has changed, it has {size:,} bytes instead of {tar.size:,}; "
                f"to read it anew, remove {tar.path.parent}",
                code=1,
            )
        _reserve(tar.path, size)
        self._largest = max(self._largest, size)

    def _make_room(self, size: int, *, ahead: bool) -> bool:
        coming = self._reserved()
        files = _files(self.folder).items()
        here = {path: facts for path, facts in files if not path.name.endswith(LOCK) and _tar_of(path) not in coming}
        used = sum(coming.values()) + sum(size for size, _ in here.values())
        left = min(cache_limit() - used, disk_usage(self.folder).free - sum(coming.values()))
        needed = {tar.path: place for place, tar in enumerate(self._expected)}
        # First those that nobody waits for, then those that are needed last.
        order = sorted(here, key=lambda path: (-needed.get(_tar_of(path), len(needed)), here[path][1]))
        for path in order:
            if left >= size or (ahead and _tar_of(path) in needed):
                break
            left += here[path][0] if _removed(path) else 0
        return left >= size


class _Measure:
    """Stops a tar that alone is more than may be kept."""

    def __init__(self, tar: RemoteTar) -> None:
        self._tar, self._limit, self._got = tar, cache_limit(), 0

    def take(self, size: int) -> None:
        """Count bytes of the tar."""
        self._got += size
        if self._got > self._limit:
            raise UserError(
                f"{self._tar.address} alone is larger than the {self._limit / 1e9:g} GB that fetched tars may take; "
                "allow more: UNICL_CACHE_GB=500",
                code=1,
            )


def shelf() -> Shelf:
    """The shelf of this process, in the cache folder."""
    return _shelf(cache_folder() / "streamed")


def expect(tars: tuple[RemoteTar, ...]) -> None:
    """Have this process fetch tars that are needed soon; see `Shelf.expect`."""
    if tars:
        shelf().expect(tars)


@cache
def _shelf(folder: Path) -> Shelf:
    return Shelf(folder)


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of change of all tars, parts of tars and locks in a folder."""
    found = {}
    for path in folder.rglob("*"):
        # Others remove files too.
        with suppress(OSError):
            if ENDING not in path.name and path.is_file():
                facts = path.stat()
                found[path] = facts.st_size, facts.st_mtime_ns
    return found


def _tar_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(LOCK).removesuffix(PART))


def _reserve(tar: Path, size: int) -> None:
    # The length of a tar's lock, which takes nothing of the disk, says what has been set aside for it.
    os.truncate(tar.with_name(f"{tar.name}{LOCK}"), size)


def _released(tar: Path) -> bool:
    """Whether nobody fetches or holds a tar; what a process that was killed had reserved is free then."""
    with suppress(OSError), one_at_a_time(tar, wait=False):
        _reserve(tar, 0)
        return True
    return False


def _removed(path: Path) -> bool:
    """Remove a tar, or what is left of one, unless it is being fetched or held."""
    with suppress(OSError), one_at_a_time(_tar_of(path), wait=False):
        path.unlink(missing_ok=True)
        return True
    return False
