"""Folders of image files: one folder a class, or images with their texts beside them."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from unicl.data.formats.locate import inside
from unicl.data.formats.rows import Group, Reading, group_samples
from unicl.errors import UserError
from unicl.space import Sample

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2", ".jfif"),
        *(".dcm", ".dicom"),
    )
)
BESIDE = (".txt", ".json", ".cls")
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "dev"))
HIDDEN = ("__MACOSX", "@eaDir")
PROBED = 1000


def class_samples(reading: Reading) -> Iterator[Sample]:
    """One folder a class: the first folder of an image's path names its class; texts beside images are captions."""
    reading.ledger.columns.update(image="files", label="folder")
    yield from group_samples(_groups(reading, classes=True), reading)


def image_samples(reading: Reading) -> Iterator[Sample]:
    """Images anywhere in a folder, each with a txt or json of the same name beside it, or none."""
    reading.ledger.columns.update(image="files")
    yield from group_samples(_groups(reading, classes=False), reading)


def has_images(folder: Path, *, root: Path | None = None) -> bool:
    """Whether an image is among the first files of a folder and its subfolders."""
    return any(_ending(name) in SUFFIXES for name in islice(_walk(folder, root=root), PROBED))


def has_classes(folder: Path, *, root: Path | None = None) -> bool:
    """Whether the subfolders of ``folder`` are classes: no image lies above them, and they are no numbered shards.

    Raises `UserError` when they are the splits of a data set.
    """
    probe = list(islice(_walk(folder, root=root), PROBED))
    images = [name for name in probe if _ending(name) in SUFFIXES]
    if not images or any("/" not in name for name in images):
        return False
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _shown(entry.name))
    if all(name.casefold() in SPLITS for name in names):
        paths = " or ".join(f"{folder.name}/{name}" for name in names)
        raise UserError(f"{folder.name} holds {' and '.join(names)}, which are parts of a data set: give {paths}")
    beside = any(_ending(name) in BESIDE for name in probe)
    return not (beside and all(re.fullmatch(r"\d{5,}", name) for name in names))


def _groups(reading: Reading, *, classes: bool) -> Iterator[Group]:
    folder = reading.spec.paths[0]
    images, beside, others = _contents(folder, root=reading.spec.root)
    if not images:
        raise UserError(f"the folder {reading.spec.typed!r} holds no images{_instead(others)}")
    if tables := [name for name in others if name.endswith((".csv", ".tsv", ".jsonl", ".parquet"))]:
        reading.ledger.note(f"{tables[0]} in the folder is not read; give it as a source of its own")
    nested = {name.partition("/")[0] for name in images if "/" in name}
    if not classes and nested and any("/" not in name for name in images):
        reading.ledger.note(f"folders inside it ({', '.join(sorted(nested)[:3])}) are read as images without a class")
    top = str(folder)
    for name in images:
        stem = name[: name.rfind(".")]
        fields = {end[1:]: Path(top, stem + end).read_bytes() for end in BESIDE if stem + end in beside}
        label = name.partition("/")[0] if classes and "/" in name else None
        yield Group(id=name, stem=stem, image=Path(top, name), fields=fields, label=label)


def _contents(folder: Path, *, root: Path | None) -> tuple[list[str], frozenset[str], list[str]]:
    """The images, the text files that may stand beside them, and everything else."""
    images: list[str] = []
    beside: list[str] = []
    others: list[str] = []
    for name in _walk(folder, root=root):
        ending = _ending(name)
        (images if ending in SUFFIXES else beside if ending in BESIDE else others).append(name)
    return images, frozenset(beside), others


def _walk(folder: Path, *, root: Path | None, under: str = "") -> Iterator[str]:
    """The files of a folder by their path from it, those of a folder before those of its subfolders, by name."""
    try:
        with os.scandir(folder / under) as listed:
            entries = sorted((entry for entry in listed if _shown(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"the folder {str(folder / under)!r} cannot be read: {error.strerror}") from error
    folders = []
    for entry in entries:
        if entry.is_symlink() and not _allowed(entry, top=root or folder):
            continue
        if entry.is_dir():
            folders.append(entry.name)
        else:
            yield under + entry.name
    for name in folders:
        yield from _walk(folder, root=root, under=f"{under}{name}/")


def _allowed(link: os.DirEntry[str], *, top: Path) -> bool:
    """Whether to follow a link: not round in a circle, and never out of the data folder (`UserError`)."""
    target = os.path.realpath(link.path)
    if not inside(target, top):
        raise UserError(
            f"{link.path!r} is a link that leaves the data folder {str(top)!r}; if it is meant, name a folder "
            "that holds all images: add root=DIR to the source (root=/ allows every path)"
        )
    here = os.path.realpath(Path(link.path).parent)
    return not (Path(target).is_dir() and inside(here, Path(target)))


def _shown(name: str) -> bool:
    return not name.startswith(".") and name not in HIDDEN


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].casefold()  # noqa: PTH122


def _instead(others: list[str]) -> str:
    tables = [name for name in others if name.endswith((".csv", ".tsv", ".jsonl", ".parquet"))]
    if tables:
        return f"; it has the table {tables[0]}: give that file as the source"
    counted = Counter(_ending(name) or "unnamed" for name in others).most_common(3)
    kinds = ", ".join(f"{number} {ending} files" for ending, number in counted)
    return f" (jpg, png, webp, ...); it has {kinds}" if kinds else ": it is empty"
