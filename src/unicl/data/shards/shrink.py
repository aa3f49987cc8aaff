"""An image as a shard stores it: its own bytes, or a smaller JPEG."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from unicl.data.dicom import is_dicom
from unicl.data.image import ORIENTATION, decode
from unicl.data.sources import read_bytes
from unicl.errors import BadImage
from unicl.space import ImageSource

DICOM: Final = "DICOM"
EXTENSIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "JPEG": "jpg",
        "MPO": "jpg",
        "PNG": "png",
        "WEBP": "webp",
        "GIF": "gif",
        "BMP": "bmp",
        "TIFF": "tif",
        "PPM": "ppm",
        "AVIF": "avif",
        "JPEG2000": "jp2",
        DICOM: "dcm",
    }
)
"""The formats that are stored as they are, by the name that Pillow has for them, and DICOM."""

LONGEST_SIDE = 65_535
"""Of a JPEG: its header has 16 bits for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The file that goes into a shard; ``read`` bytes were read for it, ``made`` says that it is no copy.

    ``width`` and ``height`` are those of the image as it is seen, turned by its EXIF tag.
    """

    content: bytes
    extension: str
    width: int
    height: int
    read: int
    made: bool


def stored(image: ImageSource, *, shorter: int | None, quality: int) -> Stored:
    """Copy an image, or make it a JPEG whose shorter side is ``shorter`` pixels; it is never enlarged.

    What becomes a JPEG is turned upright and put on white where it is transparent, as `unicl.data.image.decode` does,
    scaled bicubic and antialiased, with colours at half resolution (4:2:0). A JPEG that is small enough is copied.
    Raises `BadImage`, also for an image that would only be copied: each is decoded.
    """
    content = read_bytes(image)
    pixels = decode(content)
    height, width = pixels.shape[1:]
    kind = _kind(content)
    small = shorter is None or (kind == "JPEG" and min(height, width) <= shorter and _plain(content))
    if small and kind in EXTENSIONS:
        extension, made, out = EXTENSIONS[kind], False, content
    else:
        pixels = _scaled(pixels, shorter=shorter)
        height, width = pixels.shape[1:]
        extension, made, out = "jpg", True, _jpeg(pixels, quality=quality)
    return Stored(content=out, extension=extension, width=width, height=height, read=len(content), made=made)


def _kind(content: bytes) -> str:
    if is_dicom(content):
        return DICOM
    try:
        with Image.open(BytesIO(content)) as opened:
            return opened.format or ""
    # It was decoded, by whatever could: then it is stored as a JPEG.
    except Exception:
        return ""


def _plain(content: bytes) -> bool:
    """Whether any reader of JPEGs sees the same: upright, and of gray or RGB."""
    with Image.open(BytesIO(content)) as opened:
        return opened.mode in ("RGB", "L") and opened.getexif().get(ORIENTATION, 1) == 1


def _scaled(pixels: Tensor, *, shorter: int | None) -> Tensor:
    height, width = pixels.shape[1:]
    short = min(height, width)
    if shorter is None or short <= shorter:
        return pixels
    size = (round(height * shorter / short), round(width * shorter / short))
    return torch.nn.functional.interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0]


def _jpeg(pixels: Tensor, *, quality: int) -> bytes:
    import simplejpeg  # type: ignore[import-untyped]

    if max(pixels.shape[1:]) > LONGEST_SIDE:
        raise BadImage(f"too long for a JPEG: more than {LONGEST_SIDE:,} pixels")
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    content: bytes = simplejpeg.encode_jpeg(array, quality=quality, colorspace="RGB", colorsubsampling="420")
    return content
