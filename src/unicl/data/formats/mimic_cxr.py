"""MIMIC-CXR: tables of images, of findings and of the parts of the data set, and reports in folders of patients."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

from unicl.data.formats.cells import Ledger
from unicl.data.formats.chexpert import FINDINGS, PATIENT, STUDY, VIEW
from unicl.data.formats.rows import Reading, Table, table_samples
from unicl.errors import UserError
from unicl.space import Sample

IMAGE: Final = "image"
REPORT: Final = "report"
SECTIONS: Final = ("findings", "impression")
"""What is read of a report."""
SPLIT: Final = "split"
VIEWS: Final = "ViewPosition"

_FRONTAL: Final = ("PA", "AP")
_LATERAL: Final = ("LATERAL", "LL")
_ENDINGS: Final = (".jpg", ".dcm", ".png")
_HEAD: Final = 50
_START: Final = "mimic-cxr-2"
Row = tuple[str, ...]


def is_mimic_cxr(path: Path) -> bool:
    """Whether a folder holds any of MIMIC-CXR's tables, or a file is one."""
    if path.is_dir():
        return any(is_mimic_cxr(file) for file in path.glob(f"{_START}*"))
    return path.name.startswith(_START) and path.name.endswith((".csv", ".csv.gz"))


def mimic_samples(reading: Reading) -> Iterator[Sample]:
    """The images of MIMIC-CXR (the JPEGs, or the DICOM files), with the findings and the report of their study.

    Findings are those of the table that was named (chexpert, negbio), else of chexpert's. The columns of a row are
    ``image``, ``report`` (what is seen, where reports stand beside the folders of images), ``study``, ``patient``,
    ``split``, ``ViewPosition``, ``Frontal/Lateral``, which is Frontal for the views PA and AP, and the findings.
    Raises `UserError` if the table of images is missing.
    """
    spec = reading.spec
    typed = spec.paths[0]
    folder = typed if typed.is_dir() else typed.parent
    labelled = _labelled(typed, folder)
    if labelled is None:
        reading.ledger.note(f"there is no {_START}...-chexpert.csv in {folder.name}: the images have no findings")
    table = _table(folder, labelled, root=spec.root or folder, ledger=reading.ledger)
    if REPORT not in table.columns:
        reading.ledger.note(f"there is no report (files/p.../s....txt) in {folder.name}: the images have no texts")
    found = [name for name in FINDINGS if name in table.columns]
    asked = replace(
        spec,
        # Names of images start at the folder that was named, whether it is this one or root=.
        paths=(folder,),
        image=IMAGE if spec.image is None else spec.image,
        text=(REPORT if REPORT in table.columns else "") if spec.text is None else spec.text,
        findings=",".join(found) or None if spec.findings is None else spec.findings,
    )
    yield from table_samples([table], replace(reading, spec=asked))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the files of a study stand: images as ``files/p10/p10000032/s50414267/ID.jpg``, reports as s....txt."""

    ending: str
    reports: Path | None

    @staticmethod
    def study(patient: str, study: str) -> str:
        """The folder of a study from the top of the data."""
        return f"files/p{patient[:2]}/p{patient}/s{study}"


def _table(folder: Path, labelled: Path | None, *, root: Path, ledger: Ledger) -> Table:
    images = _find(folder, "metadata")
    if images is None:
        raise UserError(
            f"{str(folder)!r} has no {_START}.0.0-metadata.csv or .csv.gz, which lists the images of MIMIC-CXR; put it "
            "beside the other tables"
        )
    rows_of_images = _read(images, ("dicom_id", "subject_id", "study_id", VIEWS))
    metadata = _there(rows_of_images, root)
    if len(metadata) < len(rows_of_images):
        left = len(rows_of_images) - len(metadata)
        ledger.note(f"{left:,} of {len(rows_of_images):,} images are of patients without a folder here, and left out")
    names: Row = ()
    by_study: Mapping[str, Row] = {}
    if labelled is not None:
        names, by_study = _by(labelled, key="study_id", columns=FINDINGS)
    split = _find(folder, "split")
    _, parts = ((), {}) if split is None else _by(split, key="dicom_id", columns=(SPLIT,))
    place = _place([row for _, row in metadata], root)
    blank = ("",) * len(names)

    def rows(wanted: Row) -> Iterator[tuple[int, Sequence[object]]]:
        for number, (id, patient, study, view) in metadata:
            home = place.study(patient, study)
            found = {
                IMAGE: f"{home}/{id}{place.ending}",
                STUDY: f"p{patient}/s{study}",
                PATIENT: f"p{patient}",
                SPLIT: parts.get(id, ("",))[0],
                VIEWS: view,
                VIEW: "Frontal" if view in _FRONTAL else "Lateral" if view in _LATERAL else "",
                **dict(zip(names, by_study.get(study, blank), strict=True)),
            }
            if REPORT in wanted and place.reports is not None:
                found[REPORT] = _report(place.reports / f"{home}.txt")
            yield number, [found[name] for name in wanted]

    reports = () if place.reports is None else (REPORT,)
    columns = (IMAGE, *reports, STUDY, PATIENT, *(() if split is None else (SPLIT,)), VIEWS, VIEW, *names)
    return Table(where=images.name, columns=columns, rows=rows)


def _place(metadata: Sequence[Row], root: Path) -> _Place:
    """How images end, and where reports stand: by the files of the first rows, else of the first patients there are."""
    head = [(id, _Place.study(patient, study)) for id, patient, study, _ in islice(metadata, _HEAD)]
    named = (end for id, home in head for end in _ENDINGS if (root / home / f"{id}{end}").is_file())
    others = (file.suffix for home in _patients(root) for file in home.glob("s*/*") if file.suffix in _ENDINGS)
    tops = (root, root / "mimic-cxr-reports")
    by_name = (top for top in tops if any((top / f"{home}.txt").is_file() for _, home in head))
    by_look = (top for top in tops if any(any(home.glob("s*.txt")) for home in _patients(top)))
    return _Place(ending=next(chain(named, others), _ENDINGS[0]), reports=next(chain(by_name, by_look), None))


def _there(rows: Sequence[Row], root: Path) -> list[tuple[int, Row]]:
    """The rows of patients that have a folder, with their lines; all if none has. A part is often all there is."""
    known = {patient.name for part in root.glob("files/p*") for patient in part.glob("p*")}
    numbered = list(enumerate(rows, start=2))
    return [(number, row) for number, row in numbered if f"p{row[1]}" in known] or numbered


def _patients(top: Path) -> Iterator[Path]:
    """Some patients' folders: all data has 65,000 of them."""
    return islice(top.glob("files/p*/p*"), _HEAD)


def _report(path: Path) -> str:
    """The sections of a report that say what is seen; empty if there is none."""
    # Reports may stand in tables as well, so that their module reads sources.
    from unicl.data.reports.sections import report_of

    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return report_of(text.encode(), id=path.name).text(SECTIONS)


def _labelled(typed: Path, folder: Path) -> Path | None:
    others = (_find(folder, "metadata"), _find(folder, "split"))
    return _find(folder, "chexpert") if typed.is_dir() or typed in others else typed


def _find(folder: Path, kind: str) -> Path | None:
    return next(
        iter(sorted(folder.glob(f"{_START}*-{kind}.csv")) + sorted(folder.glob(f"{_START}*-{kind}.csv.gz"))), None
    )


def _by(path: Path, *, key: str, columns: Sequence[str]) -> tuple[Row, dict[str, Row]]:
    """Those of the columns that a table has, and its rows by their key."""
    names = tuple(name for name in columns if name in _header(path))
    return names, {first: tuple(cells) for first, *cells in _read(path, (key, *names))}


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    from pyarrow import ArrowInvalid

    try:
        yield
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"{path.name} cannot be read as a CSV table: {str(error).splitlines()[0][:120]}") from error


def _header(path: Path) -> list[str]:
    from pyarrow import csv

    with _errors(path), csv.open_csv(path) as file:
        return list(file.schema.names)


def _read(path: Path, columns: Row) -> list[Row]:
    """Some columns of a CSV file, packed with gzip or not, as texts; raises `UserError` for one that is not there."""
    import pyarrow as pa
    from pyarrow import csv

    lacking = [name for name in columns if name not in _header(path)]
    if lacking:
        raise UserError(
            f"{path.name} has no column {lacking[0]!r}, as MIMIC-CXR's has; it has {', '.join(_header(path))}"
        )
    options: Any = csv.ConvertOptions(
        include_columns=list(columns), column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
    )
    with _errors(path):
        table = csv.read_csv(path, convert_options=options)
    return list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))
