"""Tables of text on disk: CSV and TSV, JSON lines, JSON lists and COCO's captions."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

from unicl.data.formats.encodings import open_text
from unicl.data.formats.rows import Reading, Table, parse_object, table_samples
from unicl.errors import UserError
from unicl.space import Sample

HEAD_CHARACTERS = 1 << 18
HEAD_ROWS = 1000
LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dialect:
    separator: str
    quoting: Literal[0, 1, 2, 3]


def csv_samples(reading: Reading) -> Iterator[Sample]:
    """CSV and TSV with a header row; the separator is found from the first rows."""
    yield from table_samples(_tables(reading, read=csv_table), reading)


def jsonl_samples(reading: Reading) -> Iterator[Sample]:
    """One JSON object a line; also a JSON file that is a list of objects, or COCO's captions or labels."""
    yield from table_samples(_tables(reading, read=json_table), reading)


def csv_table(path: Path, *, encoding: str, prefix: str = "") -> Table:
    """The table of a CSV or TSV file.

    Raises `UserError` for an empty file, for rows longer than the header and for quotes that do not close.
    """
    where = path.name
    with open_text(path, encoding=encoding, where=where) as file:
        head = file.read(HEAD_CHARACTERS)
    if not head.strip():
        raise UserError(f"{where} is empty; wanted is a header row such as 'file,title' and one row an image")
    dialect = _dialect(head, suffix=path.suffix)
    header = tuple(name.strip() for name in _parsed(head, dialect=dialect)[0])

    def rows(wanted: tuple[str, ...]) -> Iterator[tuple[int, Sequence[object]]]:
        picked = [header.index(name) for name in wanted]
        with open_text(path, encoding=encoding, where=where) as file:
            for number, cells in _csv_rows(file, dialect=dialect, width=len(header), where=where):
                yield number, [cells[index] for index in picked]

    return Table(where=where, columns=header, rows=rows, prefix=prefix)


def json_table(path: Path, *, encoding: str, prefix: str = "") -> Table:
    """The table of a JSON lines file, or of a JSON file with a list of objects; the columns are those of its head."""
    where = path.name
    with open_text(path, encoding=encoding, where=where) as file:
        whole = _json_list(file.read(), where=where) if path.suffix.casefold() == ".json" else None

    def objects() -> Iterator[tuple[int, Mapping[str, object]]]:
        if whole is not None:
            yield from enumerate(whole)
            return
        with open_text(path, encoding=encoding, where=where) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, parse_object(line, where=f"{where}, line {number:,}")

    def rows(wanted: tuple[str, ...]) -> Iterator[tuple[int, Sequence[object]]]:
        for number, fields in objects():
            yield number, [fields.get(name) for name in wanted]

    columns = tuple(dict.fromkeys(name for _, fields in islice(objects(), HEAD_ROWS) for name in fields))
    if not columns:
        raise UserError(f'{where} is empty; wanted is one object a line, such as {{"image": "a.jpg", "text": "a cat"}}')
    return Table(where=where, columns=columns, rows=rows, prefix=prefix, unit="line" if whole is None else "row")


def _tables(reading: Reading, *, read: Callable[..., Table]) -> list[Table]:
    files = reading.spec.files(".csv", ".tsv", ".jsonl", ".ndjson", ".json")
    return [
        read(path, encoding=reading.spec.encoding, prefix=f"{name}:" if len(files) > 1 else "")
        for name, path in files.items()
    ]


def _dialect(head: str, *, suffix: str) -> _Dialect:
    """The separator that gives every row of the head the same number of cells, the most of them."""
    separators = ("\t", ",", ";", "|") if suffix.casefold() == ".tsv" else (",", "\t", ";", "|")
    quoted = [_Dialect(separator=mark, quoting=csv.QUOTE_MINIMAL) for mark in separators]
    # Tables with tabs are often written without quotes, and a caption may begin with a quotation mark.
    plain = _Dialect(separator="\t", quoting=csv.QUOTE_NONE)
    return max((*quoted, plain), key=lambda dialect: _fitness(head, dialect=dialect))


def _fitness(head: str, *, dialect: _Dialect) -> tuple[float, int]:
    try:
        rows = _parsed(head, dialect=dialect, strict=dialect.separator == "\t")
    except csv.Error:
        return (0.0, 0)
    width = len(rows[0])
    even = sum(len(row) == width for row in rows) / len(rows)
    return (even, width) if width > 1 else (0.0, 1)


def _parsed(head: str, *, dialect: _Dialect, strict: bool = False) -> list[list[str]]:
    text = head if len(head) < HEAD_CHARACTERS else head[: head.rfind("\n") + 1] or head
    with _long_fields():
        lines = io.StringIO(text, newline="")
        reader = csv.reader(lines, delimiter=dialect.separator, quoting=dialect.quoting, strict=strict)
        return [row for row in islice(reader, HEAD_ROWS) if row]


def _csv_rows(file: TextIO, *, dialect: _Dialect, width: int, where: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, delimiter=dialect.separator, quoting=dialect.quoting, strict=True)
    with _long_fields(), _csv_errors(reader, where=where):
        next(cells for cells in reader if cells)
        for cells in reader:
            if len(cells) == width:
                yield reader.line_num, cells
            elif cells:
                yield reader.line_num, _filled(cells, width=width, where=where, line=reader.line_num)


@contextmanager
def _csv_errors(reader: Any, *, where: str) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise UserError(
            f"{where}, line {reader.line_num:,}: {error}; a cell that begins with a quotation mark must end with one, "
            "and marks inside it are doubled"
        ) from error


def _filled(cells: list[str], *, width: int, where: str, line: int) -> list[str]:
    if len(cells) < width:
        return cells + [""] * (width - len(cells))
    raise UserError(
        f"{where}, line {line:,} has {len(cells)} cells and the header has {width}; put quotation marks around "
        f"texts that contain the separator (the row begins {', '.join(cells)[:60]!r})"
    )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Cells longer than the 128 kB that csv allows: images in base64."""
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json_list(text: str, *, where: str) -> list[dict[str, object]] | None:
    """The objects of a JSON file; None if it is one object a line after all."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            line = f", line {error.lineno:,}" if isinstance(error, json.JSONDecodeError) else ""
            raise UserError(f"{where}{line} is not JSON: {error}") from error
        return None
    if isinstance(value, dict) and "images" in value:
        return _coco(value, where=where)
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    # A single object is a file of one line.
    if isinstance(value, dict) and "\n" not in text.strip():
        return None
    raise UserError(f"{where} holds one {type(value).__name__}; wanted is a list of objects, or one object a line")


def _coco(value: Mapping[str, Any], *, where: str) -> list[dict[str, object]]:
    """COCO's layout: images with ids, and annotations that carry a caption or a category of an image."""
    try:
        files = {image["id"]: image["file_name"] for image in value["images"]}
        names = {category["id"]: category["name"] for category in value.get("categories", ())}
        rows: list[dict[str, object]] = [
            {
                "file_name": files[entry["image_id"]],
                "caption": entry.get("caption"),
                "caption_id": entry.get("id"),
                "label": _category(entry, names),
            }
            for entry in value.get("annotations", ())
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where} looks like COCO's layout, but {error} is missing; wanted are images with id and file_name, and "
            "annotations with image_id and caption or category_id"
        ) from error
    named = {row["file_name"] for row in rows}
    empty: dict[str, object] = {"caption": None, "caption_id": None, "label": None}
    return rows + [{"file_name": file} | empty for file in files.values() if file not in named]


def _category(entry: Mapping[str, Any], names: Mapping[Any, str]) -> str | None:
    return names[entry["category_id"]] if "category_id" in entry else None
