"""CheXpert's tables: paths that begin with the data set's own name, fourteen findings, and studies of patients."""

import re
from collections.abc import Iterator, Sequence
from csv import reader
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

from unicl.data.formats.columns import listed
from unicl.data.formats.rows import Reading, Table, table_samples
from unicl.data.formats.tables import csv_table
from unicl.data.spec import Spec
from unicl.errors import UserError
from unicl.space import Sample

FINDINGS: Final = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
"""CheXpert's fourteen, in the order of its tables; MIMIC-CXR's have the same (Irvin et al. 2019, table 1)."""
VIEW: Final = "Frontal/Lateral"
STUDY: Final = "study"
PATIENT: Final = "patient"

_IMAGES: Final = ("Path", "imgpath")
"""The column of the images: CheXpert's and ConVIRT's, MedCLIP's."""
_LABEL: Final = "Variable"
"""The class of a query in ConVIRT's retrieval set."""
_STUDY: Final = re.compile(r"(?P<patient>patient\d+)/study\d+(?=/)")
_HEAD: Final = 50


def is_chexpert(path: Path) -> bool:
    """Whether a CSV file has CheXpert's images: a column of paths such as .../patient00001/study1/view1_frontal.jpg."""
    if path.suffix.casefold() != ".csv" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(4096).decode("utf-8-sig", "replace").splitlines()
    columns = next(reader(head[:1]), [])
    return len(head) > 1 and any(name in columns for name in _IMAGES) and bool(_STUDY.search(head[1]))


def is_chexpert_folder(folder: Path) -> bool:
    """Whether a folder has CheXpert's tables in it, of which one must be named."""
    return folder.is_dir() and any(is_chexpert(folder / name) for name in ("train.csv", "valid.csv"))


def chexpert_samples(reading: Reading) -> Iterator[Sample]:
    """Rows of CheXpert's ``train.csv`` and ``valid.csv``, and of the sets that MedCLIP and ConVIRT drew of them.

    The data set's folder before a path goes where it is not there. All of its findings are read unless ``findings=``
    says otherwise, and two columns come with the paths: ``study`` (patient00001/study1) and ``patient``. In ConVIRT's
    queries, the column Variable is the label.
    """
    spec = reading.spec
    tables = [
        _table(path, spec=spec, prefix=f"{name}:" if len(spec.paths) > 1 else "")
        for name, path in spec.files(".csv").items()
    ]
    columns = tables[0].columns
    found = [name for name in FINDINGS if name in columns]
    asked = replace(
        spec,
        image=_image_column(columns, where=tables[0].where) if spec.image is None else spec.image,
        findings=",".join(found) or None if spec.findings is None else spec.findings,
        label=_LABEL if spec.label is None and _LABEL in columns else spec.label,
    )
    yield from table_samples(tables, replace(reading, spec=asked))


def _table(path: Path, *, spec: Spec, prefix: str) -> Table:
    """The table with paths that lead somewhere, and what they say of patients and studies."""
    table = csv_table(path, encoding=spec.encoding, prefix=prefix)
    image = _image_column(table.columns, where=table.where)
    start = _surplus(table, image=image, top=spec.root or path.parent)

    def rows(wanted: tuple[str, ...]) -> Iterator[tuple[int, Sequence[object]]]:
        stored = tuple(name for name in wanted if name in table.columns)
        for number, (path, *cells) in table.rows((image, *stored)):
            known = _STUDY.search(str(path))
            found = dict(zip(stored, cells, strict=True))
            found |= {STUDY: known[0] if known else "", PATIENT: known["patient"] if known else ""}
            found[image] = _plain(str(path)).removeprefix(start)
            yield number, [found[name] for name in wanted]

    return replace(table, columns=tuple(dict.fromkeys((*table.columns, STUDY, PATIENT))), rows=rows)


def _image_column(columns: Sequence[str], *, where: str) -> str:
    found = next((name for name in _IMAGES if name in columns), None)
    if found is None:
        raise UserError(f"{where} has no column {' or '.join(_IMAGES)}, as CheXpert's tables; it has {listed(columns)}")
    return found


def _surplus(table: Table, *, image: str, top: Path) -> str:
    """What stands before the paths and is not in ``top``: "CheXpert-v1.0-small/" if the table lies in that folder."""
    for _, (cell,) in islice(table.rows((image,)), _HEAD):
        parts = PurePosixPath(_plain(str(cell))).parts
        for start in range(len(parts)):
            if top.joinpath(*parts[start:]).is_file():
                return "/".join((*parts[:start], ""))
    return ""


def _plain(path: str) -> str:
    return path.strip().removeprefix("./")
