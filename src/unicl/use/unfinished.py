"""What a long run has made so far: a file of lines beside its table, from which the same command goes on."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from unicl.data.locks import exclusive
from unicl.errors import UserError

Line = Mapping[str, Any]


class Unfinished:
    """The lines of a run that was stopped, by their ``id``, and a place for those to come; without a file, no place.

    What is added is on the disk before `add` returns. A line that a kill cut off is as if it had never been written.
    """

    def __init__(self, path: Path | None, file: BinaryIO | None, *, known: Mapping[str, Line]) -> None:
        self.path: Final = path
        self.known: Final = known
        self._file: Final = file

    def add(self, lines: Sequence[Line]) -> None:
        """Keep these lines; raises `UserError` if they cannot be written."""
        if self._file is None or self.path is None:
            return
        with _writing(self.path):
            self._file.write(b"".join(_packed(line) for line in lines))
            self._file.flush()
            os.fsync(self._file.fileno())

    def forget(self) -> None:
        """Remove the file: what it kept is elsewhere now, or of no use."""
        if self._file is not None and self.path is not None:
            self._file.close()
            self.path.unlink(missing_ok=True)


@contextmanager
def unfinished(path: Path | None, *, made_by: Line) -> Iterator[Unfinished]:
    """Lines kept in a file, which stays until `Unfinished.forget`, however the run ends; None keeps nothing.

    ``made_by``, plain values, says what makes the lines; those that something else made are not gone on with. Raises
    `UserError` for these, if another process has the file, or if it cannot be written.
    """
    if path is None:
        yield Unfinished(None, None, known={})
        return
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        _take(file, path)
        file.seek(0)
        lines, size = _whole(file.read())
        with _writing(path):
            file.truncate(size)
        if lines and lines[0] != made_by:
            raise UserError(_of_another(path, lines[0], made_by))
        kept = Unfinished(path, file, known={line["id"]: line for line in lines[1:]})
        if not lines:
            kept.add([made_by])
        yield kept


def _take(file: BinaryIO, path: Path) -> None:
    if os.name == "nt":
        return
    try:
        exclusive(file.fileno(), wait=False)
    except BlockingIOError as error:
        raise UserError(
            f"another run writes {str(path)!r} now; wait until it is done, or give another --out"
        ) from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {str(path)!r}: {error.strerror or error}; what is written is kept, and the same command "
            "goes on from there",
            code=1,
        ) from error


def _packed(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _whole(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """The lines before the first that is cut off or damaged, and how many bytes they take."""
    found: list[dict[str, Any]] = []
    size = 0
    for line in content.split(b"\n")[:-1]:
        try:
            read = json.loads(line)
        except ValueError:
            break
        if not isinstance(read, dict) or (found and "id" not in read):
            break
        found.append(read)
        size += len(line) + 1
    return found, size


def _of_another(path: Path, before: Line, now: Line) -> str:
    differ = [name for name in now if before.get(name) != now[name]]
    told = ", ".join(
        "another model" if name == "model" else f"{name} {before.get(name)} and not {now[name]}" for name in differ
    )
    return (
        f"{str(path)!r} was left by a run that was stopped, with {told or 'other settings'}; give what that run had to "
        "go on with it, remove the file, or give another --out"
    )
