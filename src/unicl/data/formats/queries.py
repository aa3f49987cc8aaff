"""Texts with an id and the ids of the images that they belong to: Chinese-CLIP's JSONL and LMDB, MUGE's queries."""

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unicl.data.formats.columns import listed
from unicl.data.formats.encodings import open_text
from unicl.data.formats.lmdb import Database, opened
from unicl.data.formats.rows import parse_object
from unicl.errors import UserError


@dataclass(frozen=True, slots=True)
class Naming:
    """The fields of a line: the text's id, the text, and the ids of its images."""

    id: str
    text: str
    images: str


CHINESE_CLIP: Final = Naming("text_id", "text", "image_ids")
MUGE: Final = Naming("query_id", "query_text", "item_ids")
NAMINGS: Final = (CHINESE_CLIP, MUGE)

_SIZES: Final = (b"num_samples", b"num_images")
"""The keys that Chinese-CLIP's LMDBs end with: how many others there are."""


@dataclass(frozen=True, slots=True)
class Query:
    """A text, its ``id`` (None if it has none) and the ids of its images; ``place`` is the line or record."""

    place: int
    id: object
    text: object
    images: tuple[object, ...]
    naming: Naming = CHINESE_CLIP


def read_queries(path: Path, *, encoding: str = "") -> Iterator[Query]:
    """The texts of a JSONL file, or of an LMDB folder of pairs, in which a text of several images stands several times.

    In MUGE's test set the ids of images are missing, which are what is to be found. Raises `UserError` for a line
    without a text or without ids, and for an LMDB that is not finished.
    """
    yield from _of_lmdb(path) if path.is_dir() else _of_jsonl(path, encoding=encoding)


def counted_values(database: Database, *, folder: Path) -> Iterator[tuple[str, int, int]]:
    """Key, offset and size of all that an LMDB of Chinese-CLIP's holds; `UserError` if it is not what it counts."""
    expected, found = None, 0
    for entry in database.entries():
        if entry.key in _SIZES:
            expected = database.read(entry.offset, entry.size).decode("ascii", "replace")
            continue
        found += 1
        yield entry.key.decode("utf-8", "replace"), entry.offset, entry.size
    if expected is None:
        raise UserError(
            f"{str(folder)!r} has no {' or '.join(key.decode() for key in _SIZES)}, which is written last: it was "
            "stopped before its end, or is no LMDB of Chinese-CLIP's; make it again"
        )
    if expected != str(found):
        raise UserError(f"{str(folder)!r} holds {found:,} of {expected} entries; make it again")


def asks_for_images(path: Path) -> bool:
    """Whether the first line of a JSONL file names images by ids alone."""
    with path.open("rb") as file:
        head = file.readline(1 << 20)
    try:
        entry = parse_object(head.decode("utf-8-sig"), where=path.name)
    except (UserError, UnicodeDecodeError):
        return False
    return any(naming.images in entry and entry.keys() <= {naming.id, naming.text, naming.images} for naming in NAMINGS)


def _of_jsonl(path: Path, *, encoding: str) -> Iterator[Query]:
    with open_text(path, encoding=encoding, where=path.name) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _query(parse_object(line, where=f"{path.name}, line {number:,}"), path=path, number=number)


def _query(entry: dict[str, object], *, path: Path, number: int) -> Query:
    naming = MUGE if MUGE.text in entry else CHINESE_CLIP
    ids = entry.get(naming.images, [] if naming is MUGE else None)
    if naming.text not in entry or not isinstance(ids, list):
        raise UserError(
            f"{path.name}, line {number:,} has {listed(entry)}; wanted are {naming.text!r} and {naming.images!r}, "
            "a list of the ids of its images (empty for none)"
        )
    return Query(number, entry.get(naming.id), entry[naming.text], tuple(ids), naming)


def _of_lmdb(folder: Path) -> Iterator[Query]:
    texts: dict[tuple[object, object], dict[object, None]] = {}
    with opened(folder) as database:
        places = {key: (offset, size) for key, offset, size in counted_values(database, folder=folder)}
        for number in range(len(places)):
            place = places.get(str(number))
            if place is None:
                raise UserError(f"{str(folder)!r} has no record {number:,}; make it again")
            image, id, text = _record(database.read(*place), folder=folder, number=number)
            texts.setdefault((id, text), {})[image] = None
    for place_of, ((id, text), images) in enumerate(texts.items()):
        yield Query(place_of, id, text, tuple(images))


class _Plain(pickle.Unpickler):
    """Unpickles numbers and texts; a record of strangers could otherwise run any program."""

    def find_class(self, module_name: str, global_name: str) -> object:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def _record(content: bytes, *, folder: Path, number: int) -> tuple[object, object, object]:
    try:
        image, id, text = _Plain(io.BytesIO(content)).load()
        hash((image, id, text))
    # A broken pickle can fail in any way.
    except Exception as error:
        raise UserError(
            f"record {number:,} of {str(folder)!r} is no (image id, text id, text) of Chinese-CLIP's: {error}"
        ) from error
    return image, id, text
