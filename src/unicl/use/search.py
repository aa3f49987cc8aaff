"""The pictures of a collection that are nearest to a query: by whole vectors, then, if the model can, by parts."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from unicl.compare import reads_parts, terms_of
from unicl.errors import UserError
from unicl.model import TwoTowers
from unicl.space import ImageSource
from unicl.use.embed import CHUNKS, embed
from unicl.use.files import pictures
from unicl.use.parts import rescored, why_whole
from unicl.use.query import Query
from unicl.use.vectors import MANIFEST, Item, Vectors, fingerprint, is_vectors, open_vectors, require_same_model

BLOCK = 65_536
RERANK: Final = 100
"""Pictures that are compared by their parts if nothing else is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A picture that was found: ``rank`` from 1, ``score`` what ranked it, ``cosine`` that of whole vectors."""

    rank: int
    score: float
    cosine: float
    id: str
    image: ImageSource | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer to a query: hits, best first, of ``searched`` pictures; ``skipped`` ones cannot be read.

    ``by`` is the similarity whose scores rank the hits: "cosine" of whole vectors, or the model's own among the
    ``compared`` nearest. ``note`` says why a model that has one of its own was left to whole vectors.
    """

    query: Query
    hits: tuple[Hit, ...]
    searched: int
    skipped: tuple[Item, ...]
    by: str = "cosine"
    compared: int = 0
    note: str = ""


def search(
    model: TwoTowers,
    paths: Sequence[str | Path],
    *,
    query: Query | str,
    top: int = 12,
    rerank: int = RERANK,
    batch: int = 64,
    cache: Path | None = None,
    progress: bool = False,
) -> Found:
    """The ``top`` pictures of ``paths`` by the cosine with ``query``, or by the model's own similarity.

    If the model compares parts (`unicl.compare.reads_parts`) and the query is one text, the ``rerank`` nearest by
    cosine (at least ``top``) are compared again by parts, and the best of them are found; 0 leaves it at cosines.
    Equal scores stay in the order of the pictures.

    ``paths`` are pictures as for `unicl.use.files.pictures`, or one folder that `unicl.use.embed` wrote. Vectors of
    pictures are kept in ``cache`` (`cache_folder` by default), so that only new and changed pictures are embedded
    again. Raises `UserError` for an empty query, no pictures, or vectors that another model made.
    """
    query = Query.parse(query) if isinstance(query, str) else query
    if top < 1 or batch < 1:
        raise UserError(f"top={top} and batch={batch}: both must be at least 1")
    if rerank < 0:
        raise UserError(f"rerank={rerank} must be a number of pictures, or 0 to leave the order to whole vectors")
    made_by = fingerprint(model)
    ready = _finished(paths, made_by=made_by)
    # The query comes first, so that a mistake in it is told before any picture is embedded.
    vector = query.vector(model, view="instances" if ready is None else ready.manifest.view)
    collection = ready
    if collection is None:
        folder = _cached(made_by, paths, cache=cache)
        collection = embed(model, paths, out=folder, batch=batch, progress=progress, made_by=made_by)
    best = _ranked(model, collection, vector, query=query, top=top, rerank=rerank)
    items = collection.take([row for _, _, row in best.rows])
    images = _images(items, paths)
    hits = tuple(
        Hit(rank=rank, score=score, cosine=cosine, id=item.id, image=images.get(item.id))
        for rank, ((score, cosine, _), item) in enumerate(zip(best.rows, items, strict=True), start=1)
    )
    return Found(
        query=query,
        hits=hits,
        searched=collection.manifest.count,
        skipped=tuple(collection.skipped()),
        by=best.by,
        compared=best.compared,
        note=best.note,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranked:
    """Score, cosine and number of the best rows, best first, and what `Found` says of how they were ranked."""

    rows: list[tuple[float, float, int]]
    by: str = "cosine"
    compared: int = 0
    note: str = ""


def _ranked(model: TwoTowers, collection: Vectors, vector: Tensor, *, query: Query, top: int, rerank: int) -> _Ranked:
    view = collection.manifest.view
    own = reads_parts(model, view)
    note = why_whole(model, collection, query=query, rerank=rerank) if own else ""
    if query.text is None or note or not own:
        cosines, rows = nearest(collection, vector, top=top)
        return _Ranked(rows=list(zip(cosines, cosines, rows, strict=True)), note=note)
    cosines, rows = nearest(collection, vector, top=max(top, rerank))
    # In the order of rows, files are read from front to back, and equal scores stay in that order.
    pairs = sorted(zip(rows, cosines, strict=True))
    scores = rescored(model, collection, rows=[row for row, _ in pairs], text=query.text)
    found = [(score, cosine, row) for score, (row, cosine) in zip(scores, pairs, strict=True)]
    by = " + ".join(term.similarity for term in terms_of(model, view))
    return _Ranked(rows=sorted(found, key=lambda each: -each[0])[:top], by=by, compared=len(found))


def nearest(vectors: Vectors, vector: Tensor, *, top: int) -> tuple[list[float], list[int]]:
    """Scores and rows of the ``top`` largest cosines with ``vector (D,)``; equal scores stay in the order of rows.

    Vectors are read `BLOCK` rows at a time, so memory does not grow with the collection.
    """
    wanted = vector.float().numpy()
    scores, rows = np.zeros(0, np.float32), np.zeros(0, np.int64)
    for start in range(0, len(vectors.values), BLOCK):
        block = np.asarray(vectors.values[start : start + BLOCK], dtype=np.float32)
        scores = np.concatenate([scores, block @ wanted])
        rows = np.concatenate([rows, np.arange(start, start + len(block))])
        best = np.lexsort((rows, -scores))[:top]
        scores, rows = scores[best], rows[best]
    return scores.tolist(), rows.tolist()


def cache_folder() -> Path:
    """Where vectors are kept between searches: ``UNICL_CACHE``, or ``unicl`` in the user's cache folder."""
    if own := os.environ.get("UNICL_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        home = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "unicl"


def _finished(paths: Sequence[str | Path], *, made_by: str) -> Vectors | None:
    """The vectors that ``paths`` names, if it is a folder of them; None if it is pictures."""
    folders = [Path(path).expanduser() for path in paths]
    for folder in folders:
        if (folder / CHUNKS / MANIFEST).is_file() and not is_vectors(folder):
            raise UserError(
                f"the vectors in {str(folder)!r} are not finished; give the same `unicl embed` command again, and it "
                "goes on where it stopped"
            )
    ready = [folder for folder in folders if is_vectors(folder)]
    if ready and len(folders) > 1:
        raise UserError(f"{str(ready[0])!r} is a folder of vectors, and is searched alone; give the pictures' folders")
    if not ready:
        return None
    vectors = open_vectors(ready[0])
    require_same_model(vectors, model=made_by)
    return vectors


def _cached(made_by: str, paths: Sequence[str | Path], *, cache: Path | None) -> Path:
    """The folder of the cache for these pictures and this model; ids follow the paths as typed, so these count."""
    typed = "\0".join(f"{path}\0{Path(str(path).partition('?')[0]).expanduser().absolute()}" for path in paths)
    name = hashlib.sha256(typed.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    folder = (cache_folder() if cache is None else cache) / "vectors" / made_by[:16] / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
    except OSError as error:
        if cache is not None:
            raise UserError(f"cannot keep vectors in {str(cache)!r}: {error.strerror or error}") from error
        # A home that is read-only must not keep anybody from searching: then nothing is kept for the next time.
        return Path(tempfile.mkdtemp(prefix="unicl-"))
    return folder


def _images(items: Sequence[Item], paths: Sequence[str | Path]) -> dict[str, ImageSource]:
    """The hits' pictures; those that stand in no file of their own are read from the source again."""
    found = {item.id: item.image for item in items if item.image is not None}
    if len(found) < len(items) and not is_vectors(Path(paths[0]).expanduser()):
        found |= {picture.id: picture.image for picture in pictures(paths)}
    return found
