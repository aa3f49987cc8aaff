"""What a cell of a table holds: captions, labels, an image; and the count of what was left out."""

import ast
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unicl.data.formats.columns import listed
from unicl.errors import UserError, suggest
from unicl.space import Slice

BASE64_HEADS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
"""How JPEG, PNG, GIF and WebP begin in base64."""

SHORTEST_BASE64 = 64
_STANDARD = bytes.maketrans(b"-_", b"+/")
NOT_A_NUMBER = ("nan", "NaN")


class Ledger:
    """What a reader has to tell at the end: the columns it used and what it left out, counted.

    ``texts`` is where texts stand with ids of their own, None if they have none.
    """

    def __init__(self) -> None:
        self.columns: dict[str, str] = {}
        self.texts: Path | None = None
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._notes: list[str] = []

    def count(self, what: str, *, place: str) -> None:
        """One more of ``what``; the first place is kept."""
        self._counts[what] += 1
        self._first.setdefault(what, place)

    def note(self, text: str) -> None:
        """Something to tell once."""
        if text not in self._notes:
            self._notes.append(text)

    def notes(self) -> tuple[str, ...]:
        """All of it, in the order in which it came."""
        counted = (f"{what}: {number:,} (first: {self._first[what]})" for what, number in self._counts.items())
        return (*self._notes, *counted)


class Labels:
    """Cells of a label column to class names.

    ``names`` maps labels to class names and is the list of all classes; ``features`` names the classes 0, 1, ... of a
    numbered column, where -1 is none (Hugging Face's ClassLabel).
    """

    def __init__(self, names: Mapping[str, str] | None, *, where: str, features: Sequence[str] = ()) -> None:
        self._names = names
        self._classes = frozenset(names.values()) if names else frozenset()
        self._features = features
        self._where = where
        self._cache: dict[str, tuple[str, ...]] = {}

    def __call__(self, cell: object, *, place: str) -> tuple[str, ...]:
        """The classes of one cell, none of them twice; raises `UserError` for a label that is not in the class list."""
        if isinstance(cell, str) and (known := self._cache.get(cell)) is not None:
            return known
        labels = tuple(dict.fromkeys(self.named(part, place=place) for part in self._parts(cell)))
        if isinstance(cell, str):
            self._cache[cell] = labels
        return labels

    def _parts(self, cell: object) -> list[str]:
        if is_missing(cell):
            return []
        if isinstance(cell, (list, tuple)):
            return [part for item in cell for part in self._single(item)]
        text = str(cell).strip()
        if not isinstance(cell, str) or text in self._classes or (self._names and text in self._names):
            return self._single(cell)
        items = _as_list(text)
        parts: Iterable[object] = re.split(r"[|;]", text) if items is None else items
        return [part for item in parts for part in self._single(item)]

    def _single(self, item: object) -> list[str]:
        if is_missing(item) or (self._features and item == -1):
            return []
        if self._features and isinstance(item, int) and item < len(self._features):
            return [self._features[item]]
        if isinstance(item, float) and item.is_integer():
            return [str(int(item))]
        return [str(item).strip()]

    def named(self, label: str, *, place: str) -> str:
        """The class name of a label; raises `UserError` if there is a list of classes without it."""
        if self._names is None or label in self._classes:
            return label if self._names is None else self._names.get(label, label)
        # 1.0 of a column of numbers is class 1, and so is the folder 001.
        short = label.removesuffix(".0")
        short = str(int(short)) if short.isascii() and short.isdigit() else short
        if label in self._names or short in self._names:
            return self._names.get(label, self._names.get(short, label))
        known = (*self._names, *sorted(self._classes.difference(self._names)))
        raise UserError(
            f"{self._where}, {place}: the label {label!r} is not in the class list{suggest(label, known)}, which has "
            f"{listed(known)}; correct the label, or add it to the file of names="
        )


def captions(cells: Sequence[object]) -> tuple[str, ...]:
    """The captions of one row, stripped, none of them twice; a cell may hold a list."""
    if len(cells) == 1 and isinstance(cell := cells[0], str) and cell[:1] != "[":
        text = cell.strip()
        return () if not text or text in NOT_A_NUMBER else (text,)
    found: dict[str, None] = {}
    for cell in cells:
        if isinstance(cell, str) and cell[:1] != "[":
            found[cell.strip()] = None
        elif not is_missing(cell):
            found.update((str(item).strip(), None) for item in _items(cell) if not is_missing(item))
    return tuple(text for text in found if text and text not in NOT_A_NUMBER)


def image_of(cell: object, *, where: str, place: str) -> str | bytes | Slice | None:
    """A path (as a string), the bytes of an image, or None for an empty cell.

    Takes bytes, base64, data addresses and Hugging Face's ``{"bytes", "path"}``. Raises `UserError` for an address on
    the net and for what is no image at all.
    """
    if isinstance(cell, str):
        text = cell.strip()
        return _path_or_bytes(text, where=where, place=place) if text and text not in NOT_A_NUMBER else None
    if cell is None or isinstance(cell, (bytes, Slice)):
        return cell
    if isinstance(cell, dict) and ("bytes" in cell or "path" in cell):
        inner = cell.get("bytes")
        return image_of(cell.get("path") if inner is None else inner, where=where, place=place)
    if is_missing(cell):
        return None
    raise UserError(
        f"{where}, {place}: the image column holds {type(cell).__name__} ({str(cell)[:40]!r}); wanted are "
        "paths, bytes or base64: name another column with ?image=COLUMN"
    )


def is_missing(cell: object) -> bool:
    """Whether a cell is empty: None, NaN, or a text without a letter in it. Zero is not empty."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    return isinstance(cell, str) and (not cell.strip() or cell.strip() in NOT_A_NUMBER)


def unpacked(text: str | bytes) -> bytes:
    """The bytes of a base64 text, of either alphabet; raises `ValueError` if it is none."""
    content = text.encode("ascii") if isinstance(text, str) else text
    plain = content.translate(_STANDARD, b" \t\r\n\f\v")
    try:
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error


def _path_or_bytes(text: str, *, where: str, place: str) -> str | bytes:
    if text.startswith(("http://", "https://")):
        raise UserError(
            f"{where}, {place}: the image is an address ({text[:60]!r}) and unicl fetches nothing: download "
            "the images first (for example with img2dataset)"
        )
    if text.startswith("data:") and ";base64," in text[:80]:
        return _bytes_of(text.partition(",")[2])
    if "." in text or len(text) < SHORTEST_BASE64:
        return text.removeprefix("file://")
    long_enough = re.fullmatch(r"[A-Za-z0-9+/_=\-\s]+", text)
    if text.startswith(BASE64_HEADS) or (long_enough and len(text) > 4 * SHORTEST_BASE64):
        return _bytes_of(text)
    return text


def _bytes_of(text: str) -> bytes:
    try:
        return unpacked(text)
    # The image of this one row is broken, which the reader of images reports as such.
    except ValueError:
        return text.encode()


def _items(cell: object) -> Iterable[object]:
    if isinstance(cell, (list, tuple)):
        return cell
    if isinstance(cell, str):
        items = _as_list(cell.strip())
        return [cell] if items is None else items
    return [cell]


def _as_list(text: str) -> list[object] | None:
    """A list written as JSON or as Python prints it; None if the text is no such thing."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            items = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(items, list) and all(isinstance(item, (str, int, float)) or item is None for item in items):
            return items
    return None
