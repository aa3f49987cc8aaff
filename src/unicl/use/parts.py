"""Parts of pictures: packed to be kept on disk, and read again to compare the likeliest pictures with a text."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from unicl.compare import reads_parts, scores, terms_of
from unicl.errors import UserError
from unicl.evaluate.exact import require_finite, tiles
from unicl.model import TwoTowers, View
from unicl.space import Embedding, Parts
from unicl.use.query import Query
from unicl.use.vectors import KeptParts, Manifest, Vectors

TILE: Final = 1 << 24
"""Numbers that are read from disk at once."""


def measure(model: TwoTowers, *, view: View) -> KeptParts | None:
    """How many parts a picture has and how wide they are, from a black one; None if the view compares none."""
    if model.settings.image.parts is None or not reads_parts(model, view):
        return None
    side = model.settings.image.size
    parts = model.encode_images(torch.zeros(1, 3, side, side, dtype=torch.uint8)).parts
    return None if parts is None else KeptParts(count=parts.values.shape[1], width=parts.values.shape[2])


def packed(parts: Parts | None, *, kept: KeptParts) -> np.ndarray[Any, Any]:
    """Parts as they are kept: ``(N, P, D)`` float16.

    Raises `UserError` for parts that are missing, padded, not finite, or larger than float16 can say.
    """
    if parts is None or len(parts.values) == 0:
        return np.zeros((0, kept.count, kept.width), dtype=np.float16)
    if parts.values.shape[1:] != (kept.count, kept.width) or not parts.mask.all():
        raise UserError(
            f"pictures with {kept.count} parts of {kept.width} can be kept, but some of this model have others, or "
            "padding among them; keep none with --no-parts"
        )
    halved = require_finite(parts.values, what="pictures' parts").half()
    if not halved.isfinite().all():
        largest = float(parts.values.abs().max())
        raise UserError(
            f"the parts of this model are as large as {largest:.3g}, and kept parts (float16) end at 65,504; keep none "
            "with --no-parts"
        )
    return halved.numpy()


def told(model: TwoTowers, made: Manifest) -> str:
    """What a folder keeps beside its vectors, in words to follow their number; "" if the model compares no parts."""
    if made.parts is not None:
        each = f"{made.parts.count} parts of {made.parts.width}"
        return f" with {each} each ({readable(made.parts.size(made.count))})"
    compares = model.settings.image.parts is not None and reads_parts(model, made.view)
    return " without parts (a search ranks by whole vectors)" if compares else ""


def readable(size: int) -> str:
    """A number of bytes in the unit that fits it."""
    for unit, bytes in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes:
            return f"{size / bytes:,.1f} {unit}"
    return f"{size} bytes"


def why_whole(model: TwoTowers, vectors: Vectors, *, query: Query, rerank: int) -> str:
    """Why a search of a model that compares parts is left to whole vectors; "" if it is not.

    Parts are compared with one text. A picture, or a sum of several things, has a whole vector and no parts of its
    own: similarities of parts were trained between pictures and texts, and a difference of parts means nothing.
    """
    made = vectors.manifest
    if rerank == 0:
        return "as asked"
    if query.text is None:
        return "since only one text alone is compared with parts"
    if model.settings.image.parts is not None and vectors.parts is None:
        given = "the folder keeps no parts" if measure(model, view=made.view) else "this model gives no parts"
        return f"since {given}"
    widest = max(term.dims or model.settings.width for term in terms_of(model, made.view))
    if widest > made.width:
        return f"since the similarities read {widest} dimensions and {made.width} are kept"
    return ""


def rescored(model: TwoTowers, vectors: Vectors, *, rows: Sequence[int], text: str) -> list[float]:
    """How well a text finds the pictures of some rows, as `unicl.compare.scores` has it (texts to images).

    Only these rows are read. Raises `UserError` if what is read is damaged.
    """
    texts = model.encode_texts([text])
    some = tiles(len(rows), tile=_rows_at_once(vectors))
    found = [_scores(model, vectors, rows[tile], texts) for tile in some]
    together = torch.cat(found) if found else torch.zeros(0)
    if not together.isfinite().all():
        bad = [row for row, score in zip(rows, together.tolist(), strict=True) if not np.isfinite(score)]
        raise UserError(
            f"the vectors or parts in {str(vectors.folder)!r} are damaged: {len(bad)} of {len(rows)} pictures that "
            f"were compared have no finite score, the first in row {bad[0]}; remove the folder and embed the pictures "
            "again"
        )
    return together.tolist()


def _scores(model: TwoTowers, vectors: Vectors, rows: Sequence[int], texts: Embedding) -> Tensor:
    where = np.asarray(rows)
    whole = torch.from_numpy(np.asarray(vectors.values[where], dtype=np.float32))
    parts = None
    if vectors.parts is not None:
        values = torch.from_numpy(np.asarray(vectors.parts[where], dtype=np.float32))
        parts = Parts(values=values, mask=torch.ones(values.shape[:2], dtype=torch.bool))
    images = Embedding(whole=whole, features=torch.zeros(len(whole), 0), parts=parts)
    return scores(model, images, texts, view=vectors.manifest.view)[1][:, 0]


def _rows_at_once(vectors: Vectors) -> int:
    kept = vectors.manifest.parts
    return max(1, TILE // (vectors.manifest.width if kept is None else kept.count * kept.width))
