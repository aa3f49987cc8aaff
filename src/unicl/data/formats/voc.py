"""Pascal VOC's folders: for each class and part a list of images in which it is there, is not, or is hard to see."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from unicl.data.formats.rows import Reading, Table, table_samples
from unicl.errors import UserError
from unicl.space import Finding, Sample

SPLIT: Final = "split"
IMAGE: Final = "image"
MEANINGS: Final = {"1": Finding.PRESENT, "-1": Finding.ABSENT, "0": Finding.UNCERTAIN}
"""VOC's 0 is an object that is "difficult"."""
_LISTS: Final = Path("ImageSets") / "Main"
_IMAGES: Final = Path("JPEGImages")


def is_voc(path: Path) -> bool:
    """Whether a folder has VOC's lists and its images."""
    return (path / _LISTS).is_dir() and (path / _IMAGES).is_dir()


def voc_samples(reading: Reading) -> Iterator[Sample]:
    """The images of one part (``where=split:trainval``), with each of VOC's classes as a finding.

    Raises `UserError` without a part, since parts hold each other, or for a list that says something else.
    """
    spec = reading.spec
    folder = spec.paths[0]
    lists = _lists(folder)
    splits = sorted({split for _, split in lists})
    if not any(column == SPLIT for column, _ in spec.where):
        raise UserError(
            f"{folder.name} holds the parts {', '.join(splits)}, of which one may hold another; name one with "
            f"'{spec.typed}?where=split:{splits[0]}'"
        )
    classes = sorted({name for name, _ in lists})

    def rows(wanted: tuple[str, ...]) -> Iterator[tuple[int, Sequence[object]]]:
        number = 0
        for split in splits:
            found = {name: _read(lists[name, split]) for name in classes if (name, split) in lists}
            for id in dict.fromkeys(id for each in found.values() for id in each):
                number += 1
                known = {name: int(each[id]) for name, each in found.items() if id in each}
                cells = {IMAGE: str(_IMAGES / f"{id}.jpg"), SPLIT: split, **known}
                yield number, [cells.get(name, "") for name in wanted]

    table = Table(where=str(_LISTS), columns=(IMAGE, SPLIT, *classes), rows=rows, unit="image")
    asked = replace(spec, image=IMAGE, text="", label="", findings=spec.findings or ",".join(classes))
    yield from table_samples([table], replace(reading, spec=asked))


def _lists(folder: Path) -> dict[tuple[str, str], Path]:
    """The list of each class and part; those of a part alone name no class."""
    named = (path.stem.rpartition("_") for path in sorted((folder / _LISTS).glob("*_*.txt")))
    lists = {(name, split): folder / _LISTS / f"{name}_{split}.txt" for name, _, split in named}
    if not lists:
        raise UserError(f"{folder.name}/{_LISTS} has no list of a class, such as cat_trainval.txt")
    return lists


def _read(path: Path) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 2 or cells[1] not in MEANINGS:
            raise UserError(
                f"{path.name}, line {number}: {line[:60]!r}; wanted is an image and 1 (there), -1 (not there) or 0 "
                "(difficult)"
            )
        found[cells[0]] = MEANINGS[cells[1]]
    return found
