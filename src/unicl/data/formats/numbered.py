"""Captions of images by name and number, ``NAME#0<TAB>caption``: Flickr30K's tokens, Flickr30K-CN and COCO-CN."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from unicl.data.formats.cells import captions
from unicl.data.formats.encodings import open_text
from unicl.data.formats.folders import SUFFIXES
from unicl.data.formats.rows import Reading
from unicl.errors import UserError
from unicl.space import Sample

OF_SPLITS: Final = "imageid.human-written-caption.txt"
"""COCO-CN's captions of all parts; lists of names beside it, ``coco-cn_test.txt``, tell the parts apart."""

_LINE: Final = re.compile(r"(?P<name>[^#\t]+)(?:#\w+)+\s+(?P<text>.*)")
_NAME: Final = re.compile(r"COCO_\w+_\d{12}")


def numbered_samples(reading: Reading) -> Iterator[Sample]:
    """The images that a file names, each with all its captions; the files are found in ``root=`` by their names.

    Raises `UserError` if none of them is there.
    """
    spec = reading.spec
    path, texts, chosen = spec.paths[0], *_parts(reading)
    root = spec.root or path.parent
    reading.ledger.columns.update(image=f"files in {root.name}", text=texts.name)
    places, missing = _places(root), 0
    found = _captions(texts, encoding=spec.encoding)
    names = list(found) if chosen is None else chosen
    for name in names:
        image = places.get(name) or places.get(_stem(name))
        if image is None:
            missing += 1
            reading.ledger.count("images that are not there, left out", place=name)
            continue
        if name not in found:
            reading.ledger.count("images without a caption", place=name)
        texts_of = captions(list(found.get(name, ())))
        yield Sample(id=name, image=image, captions=texts_of, namespace=reading.namespace)
    if missing == len(names):
        raise UserError(
            f"none of the {missing:,} images that {path.name} names (the first is {next(iter(names), '')!r}) is in "
            f"{str(root)!r}; name the folder that holds them: {path.name}?root=DIR"
        )


def is_numbered(path: Path) -> bool:
    """Whether a text file's first line is a numbered caption, or the name of an image whose captions are beside it."""
    if path.suffix not in (".txt", ".token"):
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            line = file.readline(4096).strip()
    except OSError:
        return False
    numbered = _LINE.fullmatch(line) is not None
    return numbered or (_NAME.fullmatch(line) is not None and path.with_name(OF_SPLITS).is_file())


def _parts(reading: Reading) -> tuple[Path, list[str] | None]:
    """The file of the captions, and the names that are wanted of it, None for all."""
    spec = reading.spec
    path = spec.paths[0]
    with open_text(path, encoding=spec.encoding, where=path.name) as file:
        lines = [line.strip() for line in file if line.strip()]
    if not lines or _LINE.fullmatch(lines[0]):
        return path, None
    texts = path.with_name(spec.text or OF_SPLITS)
    if not texts.is_file():
        raise UserError(f"{path.name} is a list of images, and there is no {texts.name} beside it with their captions")
    return texts, lines


def _captions(path: Path, *, encoding: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with open_text(path, encoding=encoding, where=path.name) as file:
        for number, line in enumerate(file, start=1):
            parts = _LINE.fullmatch(line.strip())
            if parts is not None:
                found.setdefault(parts["name"], []).append(parts["text"])
            elif line.strip():
                raise UserError(
                    f"{path.name}, line {number:,}: wanted is an image with a number, a tab and a caption, such as "
                    f"photo.jpg#0<TAB>..., but it is {line.strip()[:40]!r}"
                )
    return found


def _places(root: Path) -> dict[str, Path]:
    """Image files in a folder and those inside it, by name and by name without the ending."""
    found: dict[str, Path] = {}
    for folder, _, files in os.walk(root):
        for name in files:
            stem = _stem(name)
            if stem != name:
                found[name] = found[stem] = Path(folder, name)
    return found


def _stem(name: str) -> str:
    stem, ending = os.path.splitext(name)  # noqa: PTH122
    return stem if ending.casefold() in SUFFIXES else name
