"""Vectors of all pictures, written to a folder; an interrupted run goes on where it stopped."""

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from pydantic import TypeAdapter
from torch import Tensor

from unicl.data.locks import alone
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.exact import require_finite
from unicl.model import TwoTowers, View
from unicl.train.record import replace_text
from unicl.use.decode import decoded
from unicl.use.files import Picture, pictures, stamp
from unicl.use.vectors import (
    ITEMS,
    MANIFEST,
    SKIPPED,
    VECTORS,
    Item,
    Manifest,
    Precision,
    Vectors,
    fingerprint,
    is_vectors,
    open_vectors,
    read_items,
    require_same_model,
)

PARTS = "parts"
BLOCK = 65_536


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
    progress: bool = False,
    chunk: int = 512,
    made_by: str = "",
) -> Vectors:
    """Write the vectors of all pictures of ``paths`` to the folder ``out`` and open it.

    ``embeddings.npy`` has a row for each line of ``items.jsonl``; ``manifest.json`` says what made them; pictures
    that cannot be read are in ``skipped.jsonl``. Pictures that ``out`` already has, unchanged, are not looked at
    again: every ``chunk`` pictures are safe on disk. ``made_by`` is the model's fingerprint, if it is known already.
    Raises `UserError` if no picture can be read, or ``out`` holds vectors of another model, view or precision.
    """
    if view == "classes" and model.text is None:
        raise UserError("a model without a text tower has one kind of vector; leave out the view, or ask for instances")
    if batch < 1 or chunk < 1:
        raise UserError(f"batch={batch} and chunk={chunk}: both must be at least 1")
    listing = pictures(paths)
    manifest = Manifest(
        model=made_by or fingerprint(model),
        recipe=model.settings.recipe,
        view=view,
        width=model.settings.views[view] or model.settings.width,
        dtype=dtype,
        count=0,
        skipped=0,
        paths=tuple(map(str, paths)),
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
    with bar("embedding pictures", total=len(new), shown=progress and bool(new)) as advance:
        for start in range(0, len(new), chunk):
            part = new[start : start + chunk]
            files = _write_part(model, part, manifest=manifest, folder=out / PARTS, batch=batch, advance=advance)
            known.add(files[0], items=files[1], skipped=files[2])
    return _finish(listing, known, manifest=manifest, out=out)


def _known(out: Path, *, manifest: Manifest) -> _Known:
    """What a finished folder and the parts of an unfinished run hold; the newer ones count."""
    known = _Known()
    if is_vectors(out):
        vectors = open_vectors(out)
        require_same_model(vectors, model=manifest.model)
        _require_same_kind(vectors.manifest, manifest, out=out)
        known.add(out / VECTORS, items=out / ITEMS, skipped=out / SKIPPED)
    parts = out / PARTS
    parts.mkdir(exist_ok=True)
    if (parts / MANIFEST).is_file():
        _require_same_kind(TypeAdapter(Manifest).validate_json((parts / MANIFEST).read_bytes()), manifest, out=out)
    else:
        replace_text(parts / MANIFEST, _json(manifest))
    # The list of items is the last of a part's three files to be written: with it, the part is whole.
    for items in sorted(parts.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
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


def _is_current(out: Path, *, listing: Sequence[Picture], known: _Known) -> bool:
    if not is_vectors(out):
        return False
    wanted = [picture.id for picture in listing if picture.id in known.places]
    whole = all(known.places[id] == (out / VECTORS, row) for row, id in enumerate(wanted))
    return whole and open_vectors(out).manifest.count == len(wanted)


def _write_part(
    model: TwoTowers,
    part: Sequence[Picture],
    *,
    manifest: Manifest,
    folder: Path,
    batch: int,
    advance: Callable[[int], None],
) -> tuple[Path, Path, Path]:
    rows: list[Tensor] = [torch.zeros(0, manifest.width)]
    items: list[Item] = []
    skipped: list[Item] = []
    image = model.settings.image
    for got in decoded(part, size=image.size, batch=batch, frame=image.frame):
        rows.append(model.embed_image(got.pixels, view=manifest.view, batch=batch))
        items += got.items
        skipped += got.skipped
        advance(len(got.items) + len(got.skipped))
    values = require_finite(torch.cat(rows), what="vectors of pictures")
    name = uuid.uuid4().hex
    files = (folder / f"{name}.npy", folder / f"{name}.jsonl", folder / f"{name}.skipped.jsonl")
    with files[0].open("wb") as file:
        np.save(file, values.numpy().astype(manifest.dtype))
        file.flush()
        os.fsync(file.fileno())
    replace_text(files[2], "".join(item.line() for item in skipped))
    replace_text(files[1], "".join(item.line() for item in items))
    return files


def _finish(listing: Sequence[Picture], known: _Known, *, manifest: Manifest, out: Path) -> Vectors:
    """Bring all rows into one file in the order of the listing; the parts go when the rest is on disk."""
    read = [picture.id for picture in listing if picture.id in known.places]
    skipped = [known.items[picture.id] for picture in listing if picture.id not in known.places]
    if not read:
        first = "; ".join(f"{item.id}: {item.reason}" for item in skipped[:3])
        raise UserError(f"none of the {len(skipped)} pictures can be read ({first})")
    whole = replace(manifest, count=len(read), skipped=len(skipped))
    gathered = out / f"{VECTORS}.part"
    _gather([known.places[id] for id in read], path=gathered, manifest=whole)
    # Without a manifest the folder counts as unfinished, so new vectors never stand beside an old list.
    (out / MANIFEST).unlink(missing_ok=True)
    gathered.replace(out / VECTORS)
    replace_text(out / ITEMS, "".join(known.items[id].line() for id in read))
    replace_text(out / SKIPPED, "".join(item.line() for item in skipped))
    replace_text(out / MANIFEST, _json(whole))
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return open_vectors(out)


def _gather(places: Sequence[tuple[Path, int]], *, path: Path, manifest: Manifest) -> None:
    """Copy rows of several files into one, `BLOCK` at a time."""
    whole = open_memmap(path, mode="w+", dtype=manifest.dtype, shape=(manifest.count, manifest.width))
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for place, (file, row) in enumerate(places):
        by_file.setdefault(file, []).append((place, row))
    for file, pairs in by_file.items():
        source = np.load(file, mmap_mode="r")
        for start in range(0, len(pairs), BLOCK):
            to, of = np.array(pairs[start : start + BLOCK]).T
            whole[to] = source[of]
    whole.flush()


def _json(manifest: Manifest) -> str:
    return TypeAdapter(Manifest).dump_json(manifest, indent=2).decode() + "\n"
