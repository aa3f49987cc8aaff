"""Chinese-CLIP's layouts: images as base64 in a TSV or an LMDB, texts with the ids of their images beside them."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from unicl.data.formats.cells import captions
from unicl.data.formats.lmdb import DATA, opened
from unicl.data.formats.queries import asks_for_images, counted_values, read_queries
from unicl.data.formats.rows import Reading
from unicl.data.tars.offsets import DamagedIndex, Member, Members, read_index, stamp_of, write_index
from unicl.errors import UserError
from unicl.space import Sample, Slice

IMAGES: Final = ("_imgs.tsv", ".tsv")
TEXTS: Final = ("_texts.jsonl", "_queries.jsonl", ".jsonl")
"""How the two files of a pair end, after the same beginning; MUGE calls its texts queries."""

_LINE: Final = re.compile(rb"(?:\xef\xbb\xbf)?[^\t\n]{1,200}\t[A-Za-z0-9+/_\-]{64}")
_IMAGES, _PAIRS = "imgs", "pairs"
_LONGEST: Final = 1 << 24
_TAIL: Final = 16
"""Where white space is looked for at the end of a line, which need not be copied for that."""


def pair_samples(reading: Reading) -> Iterator[Sample]:
    """The images with their captions, and the texts of no image; images are read in place (`Slice` of base64).

    Raises `UserError` if not one of the images that the texts name is there.
    """
    images, texts = pair_of(reading.spec.paths[0], text=reading.spec.text)
    ledger, namespace = reading.ledger, reading.namespace
    ledger.columns["image"] = _shown(images)
    ledger.texts = texts
    captions_of, free = ({}, []) if texts is None else _texts(texts, encoding=reading.spec.encoding)
    if texts is not None:
        ledger.columns["text"] = _shown(texts)
    found = _once(_images(images, reading=reading), reading=reading)
    if texts is not None and captions_of and captions_of.keys().isdisjoint(found):
        raise _strangers(images, texts, wanted=next(iter(captions_of)), there=next(iter(found)), count=len(captions_of))
    for id, image in found.items():
        own = captions_of.pop(id, [])
        if not own and texts is not None:
            ledger.count("images without a caption", place=f"image {id}")
        yield Sample(id=f"image {id}", image=image, captions=captions(own), namespace=namespace)
    for id in captions_of:
        ledger.count(f"images with a caption that are not in {_shown(images)}", place=f"image {id}")
    for number, text in free:
        yield Sample(id=f"text {number}", captions=captions([text]), namespace=namespace)


def holds_pair(path: Path, *, text_alone: bool = False) -> bool:
    """Whether a path has one of Chinese-CLIP's layouts: a file of a pair, an LMDB, or a folder of such.

    Raises `UserError` for a JSONL of texts whose images are nowhere, unless it is ``text_alone`` that is wanted.
    """
    if path.is_dir():
        return bool(_pairs_in(path)) or _is_lmdb(path) or _has_splits(path)
    if path.name.endswith(IMAGES[0]) or (path.suffix == ".tsv" and _is_images(path)):
        return True
    if not path.name.endswith(TEXTS):
        return False
    if _images_of(path) is not None:
        return True
    if asks_for_images(path) and not text_alone:
        tried = " or ".join(name.name for name in _partners(path, own=TEXTS, others=IMAGES))
        raise UserError(
            f"{path.name} names its images by ids, and there is no {tried} beside it that holds them: put that there, "
            f"give the folder of an LMDB, or write {path.name}?image= to use the texts alone"
        )
    return False


def pair_of(path: Path, *, text: str | None = None) -> tuple[Path, Path | None]:
    """The images and the texts that a path stands for; ``text`` names another file of texts, "" none.

    Raises `UserError` if there are several pairs, or if one half is missing.
    """
    if path.is_dir() and not (found := _pairs_in(path)) and _is_lmdb(path):
        return _lmdb_pair(path, text=text)
    if path.is_dir() and len(found) != 1:
        several = f", such as {path.name}/{found[0].name}" if found else ""
        raise UserError(
            f"{path.name} has {len(found)} pairs of {IMAGES[0]} and {TEXTS[0]}: give one file of a pair{several}"
        )
    images = found[0] if path.is_dir() else _images_of(path) if path.suffix == ".jsonl" else path
    if images is None or images.suffix != ".tsv":
        raise UserError(
            f"{path.name} is not in Chinese-CLIP's layout: wanted are X{IMAGES[0]} and X{TEXTS[0]}, or LMDB"
        )
    if text is not None:
        return images, _named(text, near=images.parent)
    partners = _partners(images, own=IMAGES, others=TEXTS)
    texts = next((partner for partner in partners if partner.is_file()), None)
    if texts is None:
        tried = " or ".join(partner.name for partner in partners)
        raise UserError(
            f"{images.name} holds images in base64, and there is no {tried} beside it with their texts: put it there, "
            f"name it with {images.name}?text=FILE, or write {images.name}?text= to use the images alone"
        )
    return images, texts


def _pairs_in(folder: Path) -> list[Path]:
    found = [path for path in sorted(folder.glob("*.tsv")) if path.name.endswith(IMAGES[0]) or _is_images(path)]
    return [path for path in found if any(p.is_file() for p in _partners(path, own=IMAGES, others=TEXTS))]


def _partners(path: Path, *, own: tuple[str, ...], others: tuple[str, ...]) -> list[Path]:
    """What the other half of a pair may be called, the likeliest first."""
    stem = next(path.name.removesuffix(ending) for ending in own if path.name.endswith(ending))
    return [path.with_name(stem + ending) for ending in others]


def _images_of(texts: Path) -> Path | None:
    if not texts.name.endswith(TEXTS):
        return None
    partners = _partners(texts, own=TEXTS, others=IMAGES)
    return next((p for p in partners if p.is_file() and (p.name.endswith(IMAGES[0]) or _is_images(p))), None)


def _is_images(path: Path) -> bool:
    """Whether a line is an id and base64: the first, which no table with a header has, or the second of half a pair."""
    try:
        with path.open("rb") as file:
            first, second = (_LINE.match(file.readline(_LONGEST)) is not None for _ in range(2))
    except OSError:
        return False
    # Where texts wait for these images, a first one that is broken is told as any other.
    return first or (
        second and any(asks_for_images(p) for p in _partners(path, own=IMAGES, others=TEXTS) if p.is_file())
    )


def _named(text: str, *, near: Path) -> Path | None:
    if not text:
        return None
    for path in (near / text, Path(text).expanduser().absolute()):
        if path.exists():
            return path
    raise UserError(f"text={text}: there is no such file beside the data in {str(near)!r} or here")


def _is_lmdb(folder: Path) -> bool:
    inside = (folder / _IMAGES, folder / _PAIRS)
    return any(path.is_dir() for path in inside) or (folder.name in (_IMAGES, _PAIRS) and (folder / DATA).is_file())


def _has_splits(folder: Path) -> bool:
    """Never true: the parts of a data set are named in a `UserError`, of which one is to be given."""
    splits = sorted(place.parents[1] for way in ("*", "lmdb/*") for place in folder.glob(f"{way}/{_IMAGES}/{DATA}"))
    if splits:
        names = " or ".join(f"{folder.name}/{split.relative_to(folder).as_posix()}" for split in splits)
        raise UserError(f"{folder.name} holds the LMDBs of parts of a data set: give {names}")
    return False


def _lmdb_pair(folder: Path, *, text: str | None) -> tuple[Path, Path | None]:
    split = folder if folder.name not in (_IMAGES, _PAIRS) or (folder / _IMAGES).is_dir() else folder.parent
    images, pairs = split / _IMAGES, split / _PAIRS
    if not images.is_dir():
        raise UserError(f"{str(split)!r} has {_PAIRS}/ and no {_IMAGES}/, the LMDB of its images: copy it there")
    if text is not None:
        return images, _named(text, near=split)
    # Of a test set, whose texts have no images yet, the pairs are empty and the texts stand in the file alone.
    beside = split.parent.parent / f"{split.name}{TEXTS[0]}"
    if pairs.is_dir() and not (beside.is_file() and _is_empty(pairs)):
        return images, pairs
    if beside.is_file():
        return images, beside
    raise UserError(
        f"{str(split)!r} has {_IMAGES}/ and no {_PAIRS}/, the index that says which text belongs to which image: copy "
        f"it there, name a file of texts with {split.name}?text=FILE, or write {split.name}?text= to use the images "
        "alone"
    )


def _is_empty(pairs: Path) -> bool:
    return next(read_queries(pairs), None) is None


def _images(path: Path, *, reading: Reading) -> Iterator[tuple[str, Slice]]:
    if path.is_dir():
        with opened(path) as database:
            for id, offset, size in counted_values(database, folder=path):
                yield id, Slice(path / DATA, offset, size)
        return
    for member in _indexed(path, reading=reading).found:
        yield member.key, Slice(path, member.offset, member.size)


def _once(images: Iterable[tuple[str, Slice]], *, reading: Reading) -> dict[str, Slice]:
    """Images by their id; of an id that comes again, the first."""
    found: dict[str, Slice] = {}
    for id, image in images:
        if found.setdefault(id, image) is not image:
            reading.ledger.count("images whose id was there already, left out", place=f"image {id}")
    if not found:
        raise UserError(f"{reading.name} holds no images; wanted is one a line: an id, a tab and the image in base64")
    return found


def _indexed(path: Path, *, reading: Reading) -> Members:
    """Where each image of a TSV stands, by the index beside it, which the first start makes."""
    try:
        known = read_index(path)
    except DamagedIndex:
        reading.ledger.note(f"the index of {path.name} was damaged and is made anew")
        known = None
    if known is None:
        stamp = stamp_of(path)
        known = Members(tuple(_scanned(path)))
        write_index(path, known, stamp=stamp)
    return known


def _scanned(path: Path) -> Iterator[Member]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            tab, tail = line.find(b"\t"), line[-_TAIL:]
            stop = len(line) - len(tail) + len(tail.rstrip())
            if tab >= 0:
                id = line[:tab].decode("utf-8-sig", "replace").strip()
                yield Member(id, "base64", offset + tab + 1, max(0, stop - tab - 1))
            elif stop:
                raise UserError(f"{path.name}, line {number:,}: wanted is an id, a tab and an image in base64")
            offset += len(line)


def _texts(path: Path, *, encoding: str) -> tuple[dict[str, list[object]], list[tuple[int, object]]]:
    """Captions by image id, and the texts of no image with their line."""
    by_image: dict[str, list[object]] = {}
    free: list[tuple[int, object]] = []
    for query in read_queries(path, encoding=encoding):
        for id in query.images:
            by_image.setdefault(str(id), []).append(query.text)
        if not query.images:
            free.append((query.place, query.text))
    return by_image, free


def _shown(path: Path) -> str:
    return f"{path.parent.name}{os.sep}{path.name}" if path.is_dir() else path.name


def _strangers(images: Path, texts: Path, *, wanted: str, there: str, count: int) -> UserError:
    return UserError(
        f"none of the {count:,} images that {_shown(texts)} names (the first is {wanted!r}) is in {_shown(images)}, "
        f"which has for example {there!r}: give images and texts of the same part of the data set"
    )
