"""Chinese-CLIP's pair of files: images as base64 in ``*_imgs.tsv``, captions in ``*_texts.jsonl``."""

from collections.abc import Iterator
from pathlib import Path

from unicl.data.cells import captions
from unicl.data.columns import listed
from unicl.data.encodings import open_text
from unicl.data.rows import Reading, parse_object
from unicl.errors import UserError
from unicl.space import Sample, Slice

IMAGES, TEXTS = "_imgs.tsv", "_texts.jsonl"


def pair_samples(reading: Reading) -> Iterator[Sample]:
    """The images with their captions, and the texts of no image; images are read in place (`Slice` of base64)."""
    images, texts = pair_of(reading.spec.paths[0])
    reading.ledger.columns.update(image=images.name, text=texts.name)
    captions_of, free = _texts(texts, encoding=reading.spec.encoding)
    for id, image in _images(images):
        found = captions_of.pop(id, [])
        if not found:
            reading.ledger.count("images without a caption", place=f"image {id}")
        yield Sample(id=f"image {id}", image=image, captions=captions(found), namespace=reading.namespace)
    for id in captions_of:
        reading.ledger.count("images with a caption that are not in the tsv", place=f"image {id}")
    for number, text in free:
        yield Sample(id=f"text {number}", captions=captions([text]), namespace=reading.namespace)


def pairs_in(path: Path) -> list[Path]:
    """The image files of the pairs that ``path`` (a folder, or a file of a pair) stands for."""
    if path.is_dir():
        named = sorted(path.glob(f"*{IMAGES}"))
    else:
        stem = path.name.removesuffix(IMAGES).removesuffix(TEXTS)
        named = [path.with_name(stem + IMAGES)] if stem != path.name else []
    return [file for file in named if file.is_file() and _partner(file).is_file()]


def pair_of(path: Path) -> tuple[Path, Path]:
    """The two files of the one pair; raises `UserError` if a folder has several."""
    found = pairs_in(path)
    if len(found) != 1:
        raise UserError(
            f"{path.name} has {len(found)} pairs of {IMAGES} and {TEXTS}: give one file of a pair"
            + (f", such as {path.name}/{found[0].name}" if found else "")
        )
    return found[0], _partner(found[0])


def _partner(images: Path) -> Path:
    return images.with_name(images.name.removesuffix(IMAGES) + TEXTS)


def _images(path: Path) -> Iterator[tuple[str, Slice]]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            id, tab, content = line.partition(b"\t")
            if not tab:
                raise UserError(f"{path.name}, line {number:,}: wanted is an id, a tab and an image in base64")
            yield id.decode("utf-8", "replace").strip(), Slice(path, offset + len(id) + 1, len(content.rstrip()))
            offset += len(line)


def _texts(path: Path, *, encoding: str) -> tuple[dict[str, list[object]], list[tuple[int, object]]]:
    """Captions by image id, and the texts of no image with their line."""
    by_image: dict[str, list[object]] = {}
    free: list[tuple[int, object]] = []
    with open_text(path, encoding=encoding, where=path.name) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            entry = parse_object(line, where=f"{path.name}, line {number:,}")
            ids = entry.get("image_ids")
            if "text" not in entry or not isinstance(ids, list):
                raise UserError(f"{path.name}, line {number:,} has {listed(entry)}; wanted are 'text' and 'image_ids'")
            for id in ids:
                by_image.setdefault(str(id), []).append(entry["text"])
            if not ids:
                free.append((number, entry["text"]))
    return by_image, free
