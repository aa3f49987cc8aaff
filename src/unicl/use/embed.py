"""Vectors and parts of all pictures, written to a folder; an interrupted run goes on where it stopped."""

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.lib import format as npy
from pydantic import TypeAdapter
from rich.console import Console
from torch import Tensor

from unicl.data.keys import stamp
from unicl.data.locks import alone
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.exact import require_finite
from unicl.model import TwoTowers, View
from unicl.train.record import replace_text
from unicl.use.decode import decoded
from unicl.use.files import Picture, pictures
from unicl.use.parts import measure, packed, readable
from unicl.use.vectors import (
    ITEMS,
    MANIFEST,
    PARTS,
    SKIPPED,
    VECTORS,
    Item,
    KeptParts,
    Manifest,
    Precision,
    Vectors,
    fingerprint,
    is_vectors,
    open_vectors,
    read_items,
    read_manifest,
    require_same_model,
)

CHUNKS = "chunks"
BLOCK: Final = 1 << 27
"""Bytes that are gathered at a time."""
LARGE: Final = 10**9
"""Bytes of parts from which on a run says beforehand how much it will write."""


@dataclass(slots=True)
class _Known:
    """What has been looked at before, by id: the item, and where its vector is if it could be read."""

    items: dict[str, Item] = field(default_factory=dict)
    places: dict[str, tuple[Path, int]] = field(default_factory=dict)

    def add(self, vectors: Path, *, items: Path, skipped: Path) -> None:
        for row, item in enumerate(read_items(items)):
            self.items[item.id] = item
            self.places[item.id] = (vectors, row)
        for item in read_items(skipped):
            self.items[item.id] = item
            self.places.pop(item.id, None)

    def has(self, picture: Picture) -> bool:
        before = self.items.get(picture.id)
        return before is not None and before.stamp == stamp(picture.image)


def embed(
    model: TwoTowers,
    paths: Sequence[str | Path],
    *,
    out: Path,
    batch: int = 64,
    view: View = "instances",
    dtype: Precision = "float32",
    parts: bool = True,
    progress: bool = False,
    chunk: int = 512,
    made_by: str = "",
) -> Vectors:
    """Write the vectors of all pictures of ``paths`` to the folder ``out`` and open it.

    ``embeddings.npy`` has a row for each line of ``items.jsonl``; ``manifest.json`` says what made them; pictures
    that cannot be read are in ``skipped.jsonl``. If the view compares parts, ``parts.npy (N, P, D)`` holds them in
    float16; ``parts=False`` leaves them out. Pictures that ``out`` already has, unchanged, are not looked at
    again: every ``chunk`` pictures are safe on disk. ``made_by`` is the model's fingerprint, if it is known already.
    Raises `UserError` if no picture can be read, or ``out`` holds vectors of another model, view or precision, or
    has parts where none are asked for.
    """
    if view == "classes" and model.text is None:
        raise UserError("a model without a text tower has one kind of vector; leave out the view, or ask for instances")
    if batch < 1 or chunk < 1:
        raise UserError(f"batch={batch} and chunk={chunk}: both must be at least 1")
    listing = pictures(paths)
    made_by = made_by or fingerprint(model)
    manifest = Manifest(
        model=made_by,
        recipe=model.settings.recipe,
        view=view,
        width=model.settings.views[view] or model.settings.width,
        dtype=dtype,
        count=0,
        skipped=0,
        paths=tuple(map(str, paths)),
        parts=_parts_of(model, view=view, made_by=made_by, out=out) if parts else None,
    )
    try:
        with alone(out):
            return _embedded(model, listing, manifest=manifest, out=out, batch=batch, chunk=chunk, progress=progress)
    except OSError as error:
        raise UserError(
            f"cannot write the vectors to {str(out)!r}: {error.strerror or error}; what is written is kept, and the "
            "same command goes on from there",
            code=1,
        ) from error


def _embedded(
    model: TwoTowers,
    listing: Sequence[Picture],
    *,
    manifest: Manifest,
    out: Path,
    batch: int,
    chunk: int,
    progress: bool,
) -> Vectors:
    known = _known(out, manifest=manifest)
    new = [picture for picture in listing if not known.has(picture)]
    if not new and _is_current(out, listing=listing, known=known):
        return open_vectors(out)
    if progress and new:
        _announce(manifest, pictures=len(listing), out=out)
    with bar("embedding pictures", total=len(new), shown=progress and bool(new)) as advance:
        for start in range(0, len(new), chunk):
            some = new[start : start + chunk]
            files = _write_chunk(model, some, manifest=manifest, folder=out / CHUNKS, batch=batch, advance=advance)
            known.add(files[0], items=files[1], skipped=files[2])
    return _finish(listing, known, manifest=manifest, out=out)


def _parts_of(model: TwoTowers, *, view: View, made_by: str, out: Path) -> KeptParts | None:
    """The parts that this model's pictures have; looking is spared where the folder says it."""
    for folder in (out, out / CHUNKS):
        made = read_manifest(folder) if (folder / MANIFEST).is_file() else None
        if made is not None and made.model == made_by and made.view == view and made.parts is not None:
            return made.parts
    return measure(model, view=view)


def _announce(manifest: Manifest, *, pictures: int, out: Path) -> None:
    size = 0 if manifest.parts is None else manifest.parts.size(pictures)
    if manifest.parts is None or size < LARGE:
        return
    Console(stderr=True, highlight=False, markup=False).print(
        f"the parts of {pictures:,} pictures ({manifest.parts.count} of {manifest.parts.width} each) will take "
        f"{readable(size)} in {out}, and as much again while they are gathered; `unicl embed --no-parts` writes none"
    )


def _known(out: Path, *, manifest: Manifest) -> _Known:
    """What a finished folder and the chunks of an unfinished run hold; the newer ones count."""
    known = _Known()
    if is_vectors(out):
        vectors = open_vectors(out)
        require_same_model(vectors, model=manifest.model)
        _require_same_kind(vectors.manifest, manifest, out=out)
        known.add(out / VECTORS, items=out / ITEMS, skipped=out / SKIPPED)
    chunks = out / CHUNKS
    chunks.mkdir(exist_ok=True)
    if (chunks / MANIFEST).is_file():
        _require_same_kind(read_manifest(chunks), manifest, out=out)
    else:
        replace_text(chunks / MANIFEST, _json(manifest))
    # The list of items is the last of a chunk's files to be written: with it, the chunk is whole.
    for items in sorted(chunks.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        if not items.name.endswith(".skipped.jsonl"):
            known.add(items.with_suffix(".npy"), items=items, skipped=items.with_suffix(".skipped.jsonl"))
    return known


def _require_same_kind(made: Manifest, wanted: Manifest, *, out: Path) -> None:
    for name in ("model", "view", "dtype"):
        before, now = getattr(made, name), getattr(wanted, name)
        if before != now:
            raise UserError(
                f"{str(out)!r} holds vectors with {name} {before[:12]!r}, and this run would write {now[:12]!r}; "
                "give another folder, or remove that one"
            )
    if made.parts != wanted.parts:
        words = ("without parts", "with them") if made.parts is None else ("with parts", "without them")
        raise UserError(
            f"{str(out)!r} holds vectors {words[0]}, and this run would write vectors {words[1]}; give another folder, "
            "remove that one, or choose as it was made (with or without --no-parts)"
        )


def _is_current(out: Path, *, listing: Sequence[Picture], known: _Known) -> bool:
    if not is_vectors(out):
        return False
    wanted = [picture.id for picture in listing if picture.id in known.places]
    whole = all(known.places[id] == (out / VECTORS, row) for row, id in enumerate(wanted))
    return whole and open_vectors(out).manifest.count == len(wanted)


def _write_chunk(
    model: TwoTowers,
    some: Sequence[Picture],
    *,
    manifest: Manifest,
    folder: Path,
    batch: int,
    advance: Callable[[int], None],
) -> tuple[Path, Path, Path]:
    rows: list[Tensor] = [torch.zeros(0, manifest.width)]
    parts: list[np.ndarray[Any, Any]] = []
    items: list[Item] = []
    skipped: list[Item] = []
    image, kept = model.settings.image, manifest.parts
    for got in decoded(some, size=image.size, batch=batch, frame=image.frame):
        found = model.encode_images(got.pixels, batch=batch, parts=kept is not None)
        rows.append(model.see(found.whole, view=manifest.view))
        if kept is not None:
            parts.append(packed(found.parts, kept=kept))
        items += got.items
        skipped += got.skipped
        advance(len(got.items) + len(got.skipped))
    values = require_finite(torch.cat(rows), what="vectors of pictures")
    name = uuid.uuid4().hex
    files = (folder / f"{name}.npy", folder / f"{name}.jsonl", folder / f"{name}.skipped.jsonl")
    _save(files[0], values.numpy().astype(manifest.dtype))
    if parts:
        _save(_beside(files[0]), np.concatenate(parts))
    replace_text(files[2], "".join(item.line() for item in skipped))
    replace_text(files[1], "".join(item.line() for item in items))
    return files


def _save(path: Path, values: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.save(file, values)
        file.flush()
        os.fsync(file.fileno())


def _beside(vectors: Path) -> Path:
    """The file of the parts whose whole vectors are in this one."""
    return vectors.with_name(PARTS if vectors.name == VECTORS else f"{vectors.stem}.{PARTS}")


def _finish(listing: Sequence[Picture], known: _Known, *, manifest: Manifest, out: Path) -> Vectors:
    """Bring all rows into one file in the order of the listing; the chunks go when the rest is on disk."""
    read = [picture.id for picture in listing if picture.id in known.places]
    skipped = [known.items[picture.id] for picture in listing if picture.id not in known.places]
    if not read:
        first = "; ".join(f"{item.id}: {item.reason}" for item in skipped[:3])
        raise UserError(f"none of the {len(skipped)} pictures can be read ({first})")
    whole = replace(manifest, count=len(read), skipped=len(skipped))
    gathered = _gathered([known.places[id] for id in read], out=out, manifest=whole)
    # Without a manifest the folder counts as unfinished, so new vectors never stand beside an old list.
    (out / MANIFEST).unlink(missing_ok=True)
    for path in gathered:
        path.replace(path.with_suffix(""))
    replace_text(out / ITEMS, "".join(known.items[id].line() for id in read))
    replace_text(out / SKIPPED, "".join(item.line() for item in skipped))
    replace_text(out / MANIFEST, _json(whole))
    shutil.rmtree(out / CHUNKS, ignore_errors=True)
    return open_vectors(out)


def _gathered(places: Sequence[tuple[Path, int]], *, out: Path, manifest: Manifest) -> list[Path]:
    """New files, ``.part`` behind their names, with the rows of several files in one order."""
    count, kept = manifest.count, manifest.parts
    files = [out / f"{VECTORS}.part"]
    _gather(places, path=files[0], dtype=manifest.dtype, shape=(count, manifest.width))
    if kept is not None:
        files.append(out / f"{PARTS}.part")
        beside = [(_beside(file), row) for file, row in places]
        _gather(beside, path=files[1], dtype="float16", shape=(count, kept.count, kept.width))
    return files


def _gather(places: Sequence[tuple[Path, int]], *, path: Path, dtype: Precision, shape: tuple[int, ...]) -> None:
    """Copy rows of several files into one, `BLOCK` bytes at a time."""
    rows = max(1, BLOCK // (np.dtype(dtype).itemsize * prod(shape[1:])))
    header = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    # Written and not mapped: a disk that is full is then an error, and no end by a signal.
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, header)
        for start in range(0, len(places), rows):
            some = places[start : start + rows]
            block = np.empty((len(some), *shape[1:]), dtype=dtype)
            _fill(block, some)
            file.write(block.data)
        file.flush()
        os.fsync(file.fileno())


def _fill(block: np.ndarray[Any, Any], places: Sequence[tuple[Path, int]]) -> None:
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for place, (file, row) in enumerate(places):
        by_file.setdefault(file, []).append((place, row))
    for file, pairs in by_file.items():
        to, of = np.array(pairs).T
        block[to] = np.load(file, mmap_mode="r")[of]


def _json(manifest: Manifest) -> str:
    return TypeAdapter(Manifest).dump_json(manifest, indent=2).decode() + "\n"
