"""What tables call the images and texts of the data, found again."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from unicl.data.formats.columns import listed
from unicl.data.formats.rows import Table
from unicl.data.formats.tables import csv_table, json_table
from unicl.data.keys import text_key
from unicl.data.sources import load_as
from unicl.data.spec import parse
from unicl.errors import UserError
from unicl.space import Sample

ID_COLUMNS = ("caption_id", "text_id", "sentence_id", "sentid", "sent_id")
"""Columns of the data that number its captions."""
TABLES = ("csv", "tsv", "jsonl", "parquet", "hf dataset")


class Finder:
    """What images and texts of the data are called.

    An image is named by its id or, where no other image has it too, by its file's name with or without the ending; a
    text by its own id (``texts``), by the part of an id after the last colon, or by itself.
    """

    def __init__(self, samples: Sequence[Sample], texts: Mapping[str, str]) -> None:
        self._images = {sample.id: sample.id for sample in samples}
        for short in (_file_name, _stem):
            counts = Counter(short(sample.id) for sample in samples)
            unique = {short(sample.id): sample.id for sample in samples if counts[short(sample.id)] == 1}
            self._images = unique | self._images
        self._ids = texts
        self._texts = {text_key(text): text for sample in samples for text in sample.captions}

    def is_image(self, name: str) -> bool:
        """Whether a name is that of an image."""
        return name in self._images

    def images(self, names: Sequence[str], *, where: str) -> tuple[str, ...]:
        """The ids of the samples that are meant; raises `UserError` for names that are not in the data."""
        return _all_found([self._images.get(name) for name in names], names, where=where, what="images")

    def texts(self, names: Sequence[str], *, where: str, any_text: bool = False) -> tuple[str, ...]:
        """The texts that are meant, as the data writes them; ``any_text`` takes those that it does not have too."""
        found = [self._text(name) or (name if any_text else None) for name in names]
        return _all_found(found, names, where=where, what="texts")

    def _text(self, name: str) -> str | None:
        return self._ids.get(name) or self._ids.get(name.rpartition(":")[2]) or self._texts.get(text_key(name))


def numbered(names: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """The distinct names in their order, and which of them stands where: ``(N,)`` int64."""
    place: dict[str, int] = {}
    rows = [place.setdefault(name, len(place)) for name in names]
    return tuple(place), torch.tensor(rows, dtype=torch.int64)


def read_text_ids(data: Iterable[str]) -> Mapping[str, str]:
    """Id to text, of sources that have a column for it (`ID_COLUMNS`): a row with one caption, or as many ids."""
    found: dict[str, str] = {}
    for typed in data:
        for sample in _with_ids(typed):
            if len(sample.labels) == len(sample.captions):
                found.update(zip(sample.labels, sample.captions, strict=True))
    return found


def open_table(path: Path) -> Table:
    """A CSV, TSV or JSON lines file; raises `UserError` if it is not there or has another ending."""
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}")
    ending = path.suffix.casefold()
    if ending in (".csv", ".tsv", ".txt"):
        return csv_table(path, encoding="")
    if ending in (".json", ".jsonl", ".ndjson"):
        return json_table(path, encoding="")
    raise UserError(f"{path.name!r} is no table; wanted is a .csv, .tsv or .jsonl file with a header")


def plain_columns(table: Table) -> dict[str, str]:
    """The columns of a table by their names without case, blanks and underscores; the first of equal ones."""
    return {"".join(name.casefold().replace("_", " ").split()): name for name in reversed(table.columns)}


def wrong_columns(table: Table, *, wanted: str) -> UserError:
    """The error that says which columns were found and which are wanted."""
    return UserError(f"{table.where} has the columns {listed(table.columns)}; wanted are {wanted}")


def _with_ids(typed: str) -> Sequence[Sample]:
    for column in ID_COLUMNS:
        try:
            source = load_as(replace(parse(typed), image="", label=column, names=None))
        # The data itself has been read before, so that what is wrong here is that there is no such column.
        except UserError:
            continue
        return source.samples if source.format in TABLES else ()
    return ()


def _file_name(id: str) -> str:
    return PurePosixPath(id).name


def _stem(id: str) -> str:
    return PurePosixPath(id).stem


def _all_found(found: Sequence[str | None], names: Sequence[str], *, where: str, what: str) -> tuple[str, ...]:
    missing = list(dict.fromkeys(name for one, name in zip(found, names, strict=True) if one is None))
    if missing:
        first = ", ".join(repr(name) for name in missing[:3])
        raise UserError(
            f"{where}: {len(missing):,} of {len(set(names)):,} {what} are not in the data (first: {first}); an image "
            f"is named by its id or file name, a text by itself or by a column {' or '.join(ID_COLUMNS)} of the data"
        )
    return tuple(one for one in found if one is not None)
