"""LMDB files, read by their pages: where each value stands, so that nothing has to be held or kept open.

The layout is LMDB 0.9's of 64-bit machines (``MDB_DATA_VERSION`` 1): pages of equal size, of which the first two are
meta pages; a tree of branch and leaf pages; values too large for a leaf on overflow pages of their own, in one piece.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import Final

from unicl.errors import UserError

DATA: Final = "data.mdb"

_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_HEAD: Final = 16
"""Bytes before the content of a page: its number (8), padding, flags, and where its free room begins and ends."""
_PAGE: Final = Struct("<QHHHH")
_NODE: Final = Struct("<HHHH")
_META: Final = Struct("<IIQQ")
_TREE: Final = Struct("<IHHQQQQQ")
"""Of a tree: page size (of the first alone), flags, depth, pages of three kinds, entries, root."""
_NUMBER: Final = Struct("<Q")
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_ELSEWHERE: Final = 0x01
"""The flag of a node whose value stands on overflow pages."""
_NOTHING: Final = 2**64 - 1


class _Damaged(Exception):
    """Pages that do not hold together."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key and where in the file its value stands."""

    key: bytes
    offset: int
    size: int


class Database:
    """The main tree of an open LMDB file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._size, self._root = _newest(content)

    def entries(self) -> Iterator[Entry]:
        """All entries in the order of their keys; only the pages of the tree are read."""
        waiting = [] if self._root == _NOTHING else [self._root]
        left = len(self._content) // self._size
        while waiting:
            page = waiting.pop()
            start, left = page * self._size, left - 1
            if left < 0 or start + self._size > len(self._content):
                raise _Damaged(f"page {page} is not there")
            _, _, flags, lower, _ = _PAGE.unpack_from(self._content, start)
            nodes = [start + place[0] for place in self._places(start, count=(lower - _HEAD) // 2)]
            if flags & _BRANCH:
                waiting += [self._child(node) for node in reversed(nodes)]
            elif flags & _LEAF:
                yield from map(self._entry, nodes)
            else:
                raise _Damaged(f"page {page} is no part of a tree")

    def read(self, offset: int, size: int) -> bytes:
        """The bytes of a value."""
        return self._content[offset : offset + size]

    def _places(self, start: int, *, count: int) -> Iterator[tuple[int, ...]]:
        if not 0 <= count <= self._size // 2:
            raise _Damaged("a page has more entries than it can hold")
        return Struct("<H").iter_unpack(self._content[start + _HEAD : start + _HEAD + 2 * count])

    def _child(self, node: int) -> int:
        low, middle, high, _ = _NODE.unpack_from(self._content, node)
        return int(low | middle << 16 | high << 32)

    def _entry(self, node: int) -> Entry:
        low, high, flags, length = _NODE.unpack_from(self._content, node)
        key_at, size = node + _NODE.size, low | high << 16
        offset = key_at + length
        if flags & _ELSEWHERE:
            page = _NUMBER.unpack_from(self._content, offset)[0]
            offset = page * self._size + _HEAD
        if offset + size > len(self._content):
            raise _Damaged("a value ends behind the end of the file")
        return Entry(self._content[key_at : key_at + length], offset, size)


@contextmanager
def opened(folder: Path) -> Iterator[Database]:
    """The database in a folder, mapped and not loaded.

    Raises `UserError` without the file `DATA` in it, and for one that is damaged, cut off or of another kind.
    """
    path = folder / DATA
    if not path.is_file():
        raise UserError(
            f"{str(folder)!r} holds no {DATA}, which is the LMDB itself (lock.mdb is only its lock): copy it there, or "
            "make the LMDB again"
        )
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield Database(content)
    except (_Damaged, StructError, IndexError, ValueError, OSError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read as an LMDB, it is cut off or of another kind ({error}): copy it again, or "
            "make it again",
            code=1,
        ) from error


def _newest(content: mmap.mmap) -> tuple[int, int]:
    """Page size and root by the meta page of the last transaction."""
    first = _meta(content, 0)
    return max(first, _meta(content, first[1]))[1:]


def _meta(content: mmap.mmap, start: int) -> tuple[int, int, int]:
    """Transaction, page size and root."""
    magic, version, _, _ = _META.unpack_from(content, start + _HEAD)
    if magic != _MAGIC:
        raise _Damaged("it does not begin as an LMDB of a 64-bit machine")
    if version != _VERSION:
        raise _Damaged(f"its layout is version {version}, and version {_VERSION} is known")
    trees = start + _HEAD + _META.size
    page = _TREE.unpack_from(content, trees)[0]
    *_, root = _TREE.unpack_from(content, trees + _TREE.size)
    transaction = _NUMBER.unpack_from(content, trees + 2 * _TREE.size + 8)[0]
    if page < 2 * _HEAD:
        raise _Damaged(f"its pages have {page} bytes")
    return transaction, page, root
