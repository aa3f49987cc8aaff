"""Open every image once, by threads: can it be used, how large is it, what does it look like."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unicl.data.check.duplicates import Fingerprint, fingerprint
from unicl.data.image import decode
from unicl.data.sources import read_bytes
from unicl.errors import BadImage
from unicl.space import ImageSource

BLOCK = 512


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of an image that was opened; ``content`` and ``pixels`` are digests of its bytes and its pixels."""

    width: int
    height: int
    content: bytes
    pixels: bytes
    mark: Fingerprint


def look(image: ImageSource) -> Look | str:
    """Open one image; the text is the reason why it cannot be used."""
    try:
        content = read_bytes(image)
        decoded = decode(content)
    except (BadImage, OSError) as error:
        return str(error) or type(error).__name__
    height, width = decoded.shape[1:]
    shape = f"{height}x{width}".encode()
    pixels = blake2b(decoded.contiguous().numpy().data, digest_size=16, person=shape[:16])
    return Look(
        width=width,
        height=height,
        content=blake2b(content, digest_size=16).digest(),
        pixels=pixels.digest(),
        mark=fingerprint(decoded),
    )


def look_all(images: Sequence[ImageSource], *, workers: int, progress: bool) -> list[Look | str]:
    """`look` at each image, in order, with ``workers`` threads."""
    found: list[Look | str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress)
    with ThreadPoolExecutor(workers) as pool, shown as bar:
        task = bar.add_task("looking at images", total=len(images))
        # In blocks, so that a million images are not a million waiting futures.
        for start in range(0, len(images), BLOCK):
            for result in pool.map(look, images[start : start + BLOCK]):
                found.append(result)
                bar.advance(task)
    return found
