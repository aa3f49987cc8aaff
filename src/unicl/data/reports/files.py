"""Reports from disk: a folder of text and XML, one file, a compressed tar of them, or a column of a table."""

import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from unicl.data.formats.columns import choose, listed
from unicl.data.formats.tables import csv_table, json_table
from unicl.data.quarantine import Quarantine
from unicl.data.reports.sections import Report, report_of, sections
from unicl.data.sources import load_as
from unicl.data.spec import Spec, parse
from unicl.errors import UserError
from unicl.space import Sample

ENDINGS: Final = (".txt", ".xml")
ARCHIVES: Final = (".tgz", ".tar.gz")
COLUMNS: Final = ("report", "reports", "report_text", "radiology_report", "findings", "impression")
"""Columns of a table that hold reports, beside the usual names of texts; all that are there are read as one report."""
_TABLES: Final = MappingProxyType(
    {".csv": csv_table, ".tsv": csv_table, ".jsonl": json_table, ".ndjson": json_table, ".json": json_table}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """The reports of a source: how many there are, a reader that skips those that cannot be read, and its notes."""

    total: int
    read: Callable[[], Iterator[Report]]
    notes: tuple[str, ...] = ()


def reports(typed: str, *, quarantine: Quarantine) -> Reports:
    """The reports that a path means: a folder of .txt and .xml, one such file, a .tgz of them, or a table's texts.

    Those that cannot be read go to the quarantine. Raises `UserError` if there are none, or no column holds texts.
    """
    spec = parse(typed)
    path = spec.path
    if path.is_dir():
        contents = _folder(path)
    elif path.name.casefold().endswith(ARCHIVES):
        contents = _archive(path)
    elif path.suffix.casefold() in ENDINGS:
        contents = {file.name: file.read_bytes for file in spec.paths}
    else:
        return _table(spec)
    if not contents:
        raise UserError(_nothing(path))
    return Reports(total=len(contents), read=lambda: _read(contents, encoding=spec.encoding, quarantine=quarantine))


def _read(contents: Mapping[str, Callable[[], bytes]], *, encoding: str, quarantine: Quarantine) -> Iterator[Report]:
    for id, content in contents.items():
        try:
            yield report_of(content(), id=id, encoding=encoding)
        except (UserError, ValueError, OSError) as error:
            quarantine.add(id, reason=str(error))


def _folder(path: Path) -> dict[str, Callable[[], bytes]]:
    found = {}
    for place, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.casefold().endswith(ENDINGS) and not name.startswith("."):
                file = Path(place, name)
                # A name that is not UTF-8 carries lone surrogates, which no table can hold.
                id = file.relative_to(path).as_posix().encode("utf-8", "replace").decode()
                found[id] = file.read_bytes
    return found


def _archive(path: Path) -> dict[str, Callable[[], bytes]]:
    try:
        with tarfile.open(path) as file:
            members = [each for each in file if each.isfile() and each.name.casefold().endswith(ENDINGS)]
            # Reports are small, and a compressed archive is read in one pass only.
            found = {each.name: (file.extractfile(each) or io.BytesIO()).read() for each in members}
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path.name} cannot be read as a tar: {error}") from error
    return {name: partial(bytes, content) for name, content in found.items()}


def _table(spec: Spec) -> Reports:
    columns = _columns(spec)
    usual = [name for name in columns if name.strip().casefold() in COLUMNS]
    if spec.text is None and usual:
        spec = replace(spec, text=",".join(usual))
    if columns and not choose(columns, spec, where=spec.name).texts:
        raise UserError(_textless(spec, columns))
    source = load_as(spec)
    found = [sample for sample in source.samples if sample.captions]
    if not found:
        raise UserError(_textless(spec, columns))
    return Reports(total=len(found), read=lambda: map(_of_sample, found), notes=source.notes)


def _textless(spec: Spec, columns: Sequence[str]) -> str:
    known = f" (it has {listed(columns)})" if columns else ""
    return f"{spec.name} has no column with texts{known}; name the one with the reports: {spec.name}?text=COLUMN"


def _columns(spec: Spec) -> tuple[str, ...]:
    read = _TABLES.get(spec.path.suffix.casefold())
    return () if read is None or not spec.path.is_file() else read(spec.path, encoding=spec.encoding).columns


def _of_sample(sample: Sample) -> Report:
    image = str(sample.image) if isinstance(sample.image, Path) else None
    parts = tuple(part for caption in sample.captions for part in sections(caption))
    return Report(id=sample.id, sections=parts, image=image)


def _nothing(path: Path) -> str:
    others = (
        sorted({file.suffix for file in path.rglob("*") if file.is_file() and file.suffix}) if path.is_dir() else []
    )
    holds = f"; it holds {', '.join(others[:5])} files: name a table itself" if others else ""
    return f"{path.name!r} holds no reports ({' or '.join(ENDINGS)} files){holds}"
