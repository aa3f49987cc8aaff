"""Which pictures a path means: those of a folder, one file, or the images of a table or an archive."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unicl.data.formats.folders import SUFFIXES
from unicl.data.sources import ENDINGS, load
from unicl.errors import UserError, suggest
from unicl.space import ImageSource

ENDS_OF_PICTURES = tuple(sorted(SUFFIXES))
"""Endings of the files of a folder that are taken for pictures; a file that is named itself needs none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture to look at; ``id`` is its path as typed, or the source's name and the sample's id."""

    id: str
    image: ImageSource


def pictures(paths: Sequence[str | Path]) -> tuple[Picture, ...]:
    """All pictures of some paths, each once, in the order of the paths and by name within a folder.

    A folder means every picture in it and below (hidden ones stay out); a table, a tar or a saved data set means its
    images, with the same ``PATH?image=COLUMN`` as in training. Raises `UserError` if a path holds no picture.
    """
    if not paths:
        raise UserError("no pictures given; name a folder, a picture, a table or a tar, for example: photos/")
    found: dict[ImageSource, str] = {}
    taken: set[str] = set()
    for path in paths:
        own = list(_pictures(str(path)))
        if not own:
            raise UserError(_nothing(str(path)))
        for picture in own:
            if picture.image not in found:
                found[picture.image] = _unique(picture.id, taken)
                taken.add(found[picture.image])
    return tuple(Picture(id=id, image=image) for image, id in found.items())


def is_picture(name: str) -> bool:
    """Whether a name ends as pictures do."""
    return name.casefold().endswith(ENDS_OF_PICTURES)


def printable(text: str) -> str:
    """A name as text that any file can hold: one that is not UTF-8 carries lone surrogates, which none can."""
    return text.encode("utf-8", "replace").decode()


def _pictures(typed: str) -> Iterator[Picture]:
    if not typed.strip():
        raise UserError("a path is empty; name a folder, a picture, a table or a tar, for example: photos/")
    path = Path(typed).expanduser()
    if path.is_dir():
        return _of_source(typed) if _is_data(path) else _inside(path)
    if path.is_file() and not path.name.casefold().endswith(tuple(ENDINGS)):
        return iter((Picture(id=printable(path.as_posix()), image=path.absolute()),))
    if not path.exists() and is_picture(typed):
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no picture {typed!r}{suggest(path.name, near)}")
    return _of_source(typed)


def _inside(folder: Path) -> Iterator[Picture]:
    home = folder.absolute()
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if is_picture(name) and not name.startswith("."):
                inside = Path(place, name).relative_to(folder)
                yield Picture(id=printable((folder / inside).as_posix()), image=home / inside)


def _is_data(folder: Path) -> bool:
    """A folder without picture files that a source can read: shards, tables or a saved data set."""
    if next(_inside(folder), None) is not None:
        return False
    return any(entry.name.casefold().endswith((*ENDINGS, ".arrow")) for entry in folder.rglob("*"))


def _of_source(typed: str) -> Iterator[Picture]:
    source = load(typed)
    for sample in source.samples:
        if sample.image is not None:
            yield Picture(id=printable(f"{source.name}/{sample.id}"), image=sample.image)


def _unique(id: str, taken: set[str]) -> str:
    name, number = id, 1
    while name in taken:
        number += 1
        name = f"{id} ({number})"
    return name


def _nothing(typed: str) -> str:
    if Path(typed).expanduser().is_dir():
        known = ", ".join(ending[1:] for ending in ENDS_OF_PICTURES)
        return f"the folder {typed!r} holds no pictures ({known}); name the folder that holds them"
    return f"{typed!r} has no sample with an image; name its image column with '{typed}?image=COLUMN'"
