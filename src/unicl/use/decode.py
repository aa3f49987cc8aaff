"""Pictures to pixels in threads, one batch ahead of the model."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from unicl.data.image import FRAME, Frame, decode, fit
from unicl.data.keys import stamp
from unicl.errors import BadImage
from unicl.use.files import Picture
from unicl.use.vectors import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A batch: ``pixels (N, 3, S, S)`` uint8 of the ``items`` that could be read, and those that could not."""

    items: tuple[Item, ...]
    pixels: Tensor
    skipped: tuple[Item, ...]


def decoded(pictures: Sequence[Picture], *, size: int, batch: int, frame: Frame = FRAME) -> Iterator[Decoded]:
    """Batches of pictures, fitted into squares of ``size``; while one is used, threads decode the next."""
    parts = [pictures[start : start + batch] for start in range(0, len(pictures), batch)]
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        coming = [pool.submit(_decoded, picture, size=size, frame=frame) for part in parts[:1] for picture in part]
        for following in [*parts[1:], ()] if parts else []:
            waiting, coming = coming, [pool.submit(_decoded, picture, size=size, frame=frame) for picture in following]
            yield _batch([future.result() for future in waiting], size=size)
    finally:
        pool.shutdown(cancel_futures=True)


def _batch(rows: Sequence[tuple[Item, Tensor | None]], *, size: int) -> Decoded:
    pixels = [pixels for _, pixels in rows if pixels is not None]
    return Decoded(
        items=tuple(item for item, pixels in rows if pixels is not None),
        pixels=torch.stack(pixels) if pixels else torch.zeros(0, 3, size, size, dtype=torch.uint8),
        skipped=tuple(item for item, pixels in rows if pixels is None),
    )


def _decoded(picture: Picture, *, size: int, frame: Frame) -> tuple[Item, Tensor | None]:
    # The stamp is taken first: a picture that changes while it is read is then read again next time.
    before = stamp(picture.image)
    try:
        pixels = fit(decode(picture.image), size=size, frame=frame)
    except (BadImage, OSError) as error:
        return Item(id=picture.id, image=picture.image, stamp=before, reason=str(error)), None
    return Item(id=picture.id, image=picture.image, stamp=before), pixels
