"""Where the members of a tar stand, kept beside it, so that a tar is looked through only once."""

import os
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ENDING: Final = ".index"
_MAGIC: Final = b"unicl index of a tar, 1\n"
_CHECKSUM: Final = 16
_TEXTS: Final = ("keys", "extensions", "left_out", "contents")
_NUMBERS: Final = ("extension_of", "offsets", "sizes", "content_of")

Stamp = tuple[int, int]
"""Size and time of change (nanoseconds) of a file: an index is good for the tar that has both."""


class DamagedIndex(Exception):
    """A file that should hold an index and does not."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of a tar: sample ``key``, ``extension``, and where its ``size`` bytes stand.

    ``content`` is kept of texts, so that a start reads nothing of the tar itself.
    """

    key: str
    extension: str
    offset: int
    size: int
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """All of a tar that matters, in its order; ``left_out`` are the names of links and devices."""

    found: Sequence[Member]
    left_out: Sequence[str] = ()


def stamp_of(tar: Path) -> Stamp:
    """Size and time of change of a tar."""
    facts = tar.stat()
    return facts.st_size, facts.st_mtime_ns


def read_index(tar: Path) -> Members | None:
    """The index of a tar as it is now, from beside it or from the cache folder; None if there is none.

    Raises `DamagedIndex` if the only one there is cannot be read.
    """
    damage: DamagedIndex | None = None
    try:
        stamp = stamp_of(tar)
    except OSError:
        return None
    for place in _places(tar):
        try:
            content = place.read_bytes()
        except OSError:
            continue
        try:
            found = _unpacked(content, stamp=stamp)
        except DamagedIndex as error:
            damage = error
            continue
        if found is not None:
            return found[0]
    if damage is not None:
        raise damage
    return None


def has_index(tar: Path) -> bool:
    """Whether something is kept that should be the index of a tar, which need not be here any more."""
    return any(place.is_file() for place in _places(tar))


def kept_index(tar: Path) -> tuple[Members, int] | None:
    """The index of a tar that need not be here any more, and the size that it had; None if there is none."""
    for place in _places(tar):
        with suppress(OSError, DamagedIndex):
            return _unpacked(place.read_bytes(), stamp=None)
    return None


def write_index(tar: Path, members: Members, *, stamp: Stamp) -> Path | None:
    """Keep an index beside the tar, or in the cache folder if nothing can be written there; gives where it is.

    ``stamp`` is the tar's before it was read: of a tar that changed meanwhile nothing is kept. Any number of
    processes may write the same index at once.
    """
    try:
        if stamp_of(tar) != stamp:
            return None
    except OSError:
        return None
    content = _packed(members, stamp=stamp)
    for place in _places(tar):
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_file(place, content)
            return place
    return None


def replace_file(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file so that any reader sees the old content or the new one; ``sync`` waits for the disk."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """Where files go that can be made again: ``$XDG_CACHE_HOME/unicl``, or ``~/.cache/unicl``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    top = Path(given) if Path(given).is_absolute() else Path("~/.cache").expanduser()
    return top / "unicl"


def _places(tar: Path) -> Iterator[Path]:
    yield tar.with_name(tar.name + ENDING)
    with suppress(RuntimeError):  # no home
        name = blake2b(os.fsencode(tar.absolute()), digest_size=16).hexdigest()
        yield cache_folder() / "tars" / (name + ENDING)


def _packed(members: Members, *, stamp: Stamp) -> bytes:
    found = members.found
    extensions = list(dict.fromkeys(member.extension for member in found))
    number = {extension: place for place, extension in enumerate(extensions)}
    # The number of a member's content among all contents, -1 for none.
    held = np.array([member.content is not None for member in found], dtype=bool)
    columns: dict[str, Any] = {
        "head": np.array([*stamp, len(found)], dtype=np.int64),
        "extension_of": np.array([number[member.extension] for member in found], dtype=np.int64),
        "offsets": np.array([member.offset for member in found], dtype=np.int64),
        "sizes": np.array([member.size for member in found], dtype=np.int64),
        "content_of": np.where(held, held.cumsum() - 1, -1).astype(np.int64),
    }
    texts = (
        [_raw(member.key) for member in found],
        [_raw(extension) for extension in extensions],
        [_raw(name) for name in members.left_out],
        [member.content for member in found if member.content is not None],
    )
    for name, pieces in zip(_TEXTS, texts, strict=True):
        columns[name] = np.frombuffer(b"".join(pieces), dtype=np.uint8)
        columns[f"{name}_lengths"] = np.array([len(piece) for piece in pieces], dtype=np.int64)
    file = BytesIO()
    np.savez(file, **columns)
    content = file.getvalue()
    return _MAGIC + _checksum(content) + content


def _unpacked(content: bytes, *, stamp: Stamp | None) -> tuple[Members, int] | None:
    """The members and the tar's size, or None if they are of another tar; the checksum finds any damage."""
    start = len(_MAGIC) + _CHECKSUM
    if not content.startswith(_MAGIC) or _checksum(content[start:]) != content[len(_MAGIC) : start]:
        raise DamagedIndex("no index, or not as it was written")
    try:
        with np.load(BytesIO(content[start:]), allow_pickle=False) as columns:
            size, time, count = columns["head"].tolist()
            if stamp is not None and (size, time) != stamp:
                return None
            numbers = [columns[name].tolist() for name in _NUMBERS]
            keys, extensions, left_out, contents = (
                _pieces(columns[name], columns[f"{name}_lengths"]) for name in _TEXTS
            )
        if len(keys) != count:
            raise DamagedIndex(f"{len(keys)} of {count} members")
        names = [_text(extension) for extension in extensions]
        found = tuple(
            Member(_text(key), names[extension], offset, length, None if place < 0 else contents[place])
            for key, extension, offset, length, place in zip(keys, *numbers, strict=True)
        )
        return Members(found, tuple(map(_text, left_out))), size
    except (ValueError, TypeError, KeyError, IndexError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DamagedIndex(str(error)) from error


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=_CHECKSUM).digest()


def _pieces(joined: NDArray[np.uint8], lengths: NDArray[np.int64]) -> list[bytes]:
    whole = joined.tobytes()
    bounds = [0, *lengths.cumsum().tolist()]
    if bounds[-1] != len(whole):
        raise DamagedIndex("its texts do not fit their lengths")
    return [whole[start:stop] for start, stop in pairwise(bounds)]


def _raw(text: str) -> bytes:
    # Names in a tar need not be UTF-8; tarfile keeps their bytes as lone surrogates.
    return text.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
