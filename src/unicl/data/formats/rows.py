"""Rows of tables, and groups of files with one name, to samples."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from types import MappingProxyType

from unicl.data.formats.cells import Labels, Ledger, captions, image_of
from unicl.data.formats.columns import Columns, choose, listed
from unicl.data.formats.encodings import decode_text
from unicl.data.formats.finding_cells import FindingCells, finding_columns
from unicl.data.formats.locate import Locator
from unicl.data.spec import Spec
from unicl.errors import UserError, suggest
from unicl.space import Finding, Findings, ImageSource, Sample

NO_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType({})
HEAD = 100
"""How many groups of files are looked at to find which members hold the text and the label."""
_SURER = (Finding.UNMENTIONED, Finding.ABSENT, Finding.UNCERTAIN, Finding.PRESENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What every format's generator gets: the source as typed, its names, and the ledger to write into."""

    spec: Spec
    name: str
    namespace: str
    names: Mapping[str, str] | None
    ledger: Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A file of rows. ``rows(wanted)`` yields ``(number, values)``, the values in the order of ``wanted``.

    ``unit`` says what the number counts ("line", "row"); ``prefix`` tells the files of one source apart;
    ``classes`` names the classes 0, 1, ... of a numbered column.
    """

    where: str
    columns: tuple[str, ...]
    rows: Callable[[tuple[str, ...]], Iterator[tuple[int, Sequence[object]]]]
    unit: str = "line"
    prefix: str = ""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: NO_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Files or members that share a name (``stem``): an image, and the contents of what is beside it by extension.

    ``others`` are images of the same name and a number: 000.jpg, 000.1.jpg.
    """

    id: str
    stem: str
    image: ImageSource | None
    fields: Mapping[str, bytes]
    label: str | None = None
    others: tuple[ImageSource, ...] = ()


def table_samples(tables: Sequence[Table], reading: Reading) -> Iterator[Sample]:
    """The samples of tables with the same columns; rows that repeat an image are one sample with all its captions.

    With ``study=COLUMN``, rows with an equal value there are one sample with all their images and captions, which is
    of one patient even if no column says of which.
    """
    first = tables[0]
    chosen = choose(first.columns, reading.spec, where=first.where)
    findings = finding_columns(
        reading.spec.findings, columns=first.columns, others=chosen, rows=first.rows, where=first.where
    )
    chosen = replace(chosen, findings=tuple(findings))
    cells = FindingCells(findings, where=first.where)
    reading.ledger.columns.update(chosen.described())
    locator = Locator(base=reading.spec.folder, root=reading.spec.root, where=first.where)
    found: dict[str, Sample] = {}
    repeated: dict[str, list[Sample]] = {}
    for table in tables:
        for sample in _rows(_only(table, reading.spec.where), chosen, cells, reading=reading, locator=locator):
            if found.setdefault(sample.id, sample) is not sample:
                repeated.setdefault(sample.id, [found[sample.id]]).append(sample)
    if reading.spec.where and not found:
        asked = " and ".join(f"{value!r} in the column {column!r}" for column, value in reading.spec.where)
        raise UserError(f"no row of {first.where} has {asked}")
    if locator.missing:
        _tell_missing(locator, reading=reading)
    yield from (_merged(repeated[id]) if id in repeated else sample for id, sample in found.items())


def group_samples(groups: Iterable[Group], reading: Reading) -> Iterator[Sample]:
    """The samples of groups of files; text and label come from members (txt, cls) or from the fields of a json."""
    if reading.spec.where or reading.spec.study:
        does = "where= chooses" if reading.spec.where else "study= joins"
        raise UserError(f"{reading.name}: {does} rows of a table (csv, tsv, jsonl, parquet), and this is none")
    rest = iter(groups)
    head = list(islice(rest, HEAD))
    where = reading.name
    columns = _member_columns(head, reading=reading)
    chosen = choose(columns, reading.spec, where=f"{where} (files beside the images)", has_image=True)
    reading.ledger.columns.update(chosen.described())
    labels = Labels(reading.names, where=where)
    direct = set(chosen.wanted) <= {"txt", "cls"}
    for group in chain(head, rest):
        fields = _raw_fields(group, reading=reading) if direct else _all_fields(group, reading=reading)
        own = () if group.label is None else (labels.named(group.label, place=group.id),)
        given = labels(fields.get(chosen.label or ""), place=group.id)
        texts = captions([fields.get(name) for name in chosen.texts])
        if chosen.texts and not texts:
            reading.ledger.count("images without a caption", place=group.id)
        yield Sample(
            id=group.id,
            image=group.image,
            captions=texts,
            labels=tuple(dict.fromkeys((*own, *given))),
            namespace=reading.namespace,
            patient="" if chosen.patient is None else _name_of(fields.get(chosen.patient)),
        )


def parse_object(text: str, *, where: str) -> dict[str, object]:
    """One JSON object; raises `UserError` for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "it is nested too deep")
        raise UserError(f"{where} is not JSON: {reason} in {text.strip()[:60]!r}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} holds {text.strip()[:60]!r}; wanted is an object with named fields")
    return value


def _only(table: Table, where: Sequence[tuple[str, str]]) -> Table:
    """The rows of a table that have these values in these columns."""
    if not where:
        return table
    (column, value), *others = where
    if column not in table.columns:
        raise UserError(
            f"{table.where} has no column {column!r}{suggest(column, table.columns)}, which where= names; it has "
            f"{listed(table.columns)}"
        )

    def rows(wanted: tuple[str, ...]) -> Iterator[tuple[int, Sequence[object]]]:
        for number, cells in table.rows((column, *wanted)):
            if str(cells[0]).strip() == value:
                yield number, cells[1:]

    return _only(replace(table, rows=rows), others)


def _rows(
    table: Table, chosen: Columns, findings: FindingCells, *, reading: Reading, locator: Locator
) -> Iterator[Sample]:
    missing = [name for name in chosen.wanted if name not in table.columns]
    if missing:
        raise UserError(
            f"{table.where} lacks the column {missing[0]!r} of the first file; it has {listed(table.columns)}"
        )
    labels = Labels(reading.names, where=table.where, features=table.classes.get(chosen.label or "", ()))
    start = int(chosen.image is not None)
    stop = start + len(chosen.texts)
    after = stop + int(chosen.label is not None)
    for number, values in table.rows(chosen.wanted):
        place = f"{table.unit} {number}"
        id, image = table.prefix + place, None
        if start:
            id, image = _located(values[0], id=id, place=place, table=table, locator=locator)
        texts = captions(values[start:stop])
        classes = labels(values[stop], place=place) if chosen.label is not None else ()
        if image is None or not texts:
            _count(image, texts, classes, chosen=chosen, ledger=reading.ledger, place=table.prefix + place)
        if image is not None or texts or classes:
            known = findings(values[-len(chosen.findings) :], place=place) if chosen.findings else ()
            study = "" if chosen.study is None else _name_of(values[after])
            patient = "" if chosen.patient is None else _name_of(values[after + (chosen.study is not None)])
            yield Sample(
                id=study or id,
                image=image,
                captions=texts,
                labels=classes,
                namespace=reading.namespace,
                findings=known,
                patient=patient or study,
            )


def _name_of(cell: object) -> str:
    """What stands for a study or a patient: a number as it is written where nothing is missing (7, and not 7.0)."""
    if isinstance(cell, float):
        return "" if cell != cell else f"{cell:.17g}"
    return "" if cell is None else str(cell).strip()


def _located(cell: object, *, id: str, place: str, table: Table, locator: Locator) -> tuple[str, ImageSource | None]:
    image = image_of(cell, where=table.where, place=place)
    return locator.locate(image, place=place) if isinstance(image, str) else (id, image)


def _count(
    image: ImageSource | None,
    texts: Sequence[str],
    classes: Sequence[str],
    *,
    chosen: Columns,
    ledger: Ledger,
    place: str,
) -> None:
    if image is None and not texts and not classes:
        ledger.count("empty rows left out", place=place)
        return
    if image is None and chosen.image is not None:
        ledger.count("rows without an image", place=place)
    if not texts and chosen.texts:
        ledger.count("rows without a caption", place=place)


def _merged(samples: Sequence[Sample]) -> Sample:
    texts = dict.fromkeys(text for sample in samples for text in sample.captions)
    classes = dict.fromkeys(label for sample in samples for label in sample.labels)
    images = tuple(dict.fromkeys(sample.image for sample in samples if sample.image is not None))
    return replace(
        samples[0],
        image=next(iter(images), None),
        others=images[1:],
        captions=tuple(texts),
        labels=tuple(classes),
        findings=_joined([sample.findings for sample in samples if sample.findings]),
        patient=next((sample.patient for sample in samples if sample.patient), ""),
    )


def _joined(several: Sequence[Findings]) -> Findings:
    """What rows say together: a finding is present if one says so, else uncertain, else absent."""
    if len(set(several)) < 2:
        return several[0] if several else ()
    said: dict[str, list[Finding]] = {}
    for name, known in chain.from_iterable(several):
        said.setdefault(name, []).append(known)
    return tuple((name, max(known, key=_SURER.index)) for name, known in said.items())


def _tell_missing(locator: Locator, *, reading: Reading) -> None:
    total = locator.missing + locator.found
    if locator.missing < total:
        note = f"{locator.missing:,} of {total:,} image paths lead to no file (first: {locator.first_missing!r})"
        reading.ledger.note(note)
        return
    raise UserError(
        f"none of the {total:,} images that {reading.name} names is there; tried first: {locator.first_tried!r}. "
        f"If the images lie elsewhere, add their folder: {reading.spec.path.name}?root=DIR"
    )


def _member_columns(groups: Sequence[Group], *, reading: Reading) -> tuple[str, ...]:
    """Extensions of members first, then the fields of the json beside an image."""
    extensions = dict.fromkeys(name for group in groups for name in group.fields if name != "json")
    inner = dict.fromkeys(name for group in groups for name in _json_fields(group, reading=reading))
    return tuple({**extensions, **inner})


def _all_fields(group: Group, *, reading: Reading) -> dict[str, object]:
    return {**_json_fields(group, reading=reading), **_raw_fields(group, reading=reading)}


def _json_fields(group: Group, *, reading: Reading) -> dict[str, object]:
    content = group.fields.get("json")
    if content is None:
        return {}
    where = f"{group.stem}.json"
    return parse_object(decode_text(content, encoding=reading.spec.encoding, where=where), where=where)


def _raw_fields(group: Group, *, reading: Reading) -> dict[str, object]:
    """Text members by lines: several captions stand on several lines (the layout of CLIP_benchmark)."""
    encoding = reading.spec.encoding
    texts = {
        name: decode_text(content, encoding=encoding, where=f"{group.stem}.{name}")
        for name, content in group.fields.items()
        if name != "json"
    }
    return {name: text if name == "cls" else text.splitlines() for name, text in texts.items()}
