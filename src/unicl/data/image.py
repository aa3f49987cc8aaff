"""Image files to uint8 pixels: decode, fit for evaluation, augment for training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from unicl.data.autoaugment import autoaugment
from unicl.data.dicom import dicom_pixels, is_dicom
from unicl.data.radiograph import CHEST, CONVIRT, radiograph
from unicl.data.sources import read_bytes
from unicl.errors import BadImage, UserError
from unicl.space import ImageSource

MAX_PIXELS = 178_956_970
"""The size above which Pillow itself refuses an image as a decompression bomb."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
"""What is opened: pictures made of pixels. Formats that start other programs (EPS) stay out."""

TURNS: Mapping[int, Image.Transpose] = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
"""How to turn an image upright, by the value of EXIF's orientation tag (Exif 2.3, section 4.6.4)."""

ORIENTATION = 0x0112
LONGEST = 4
"""Only the middle of an image longer than this many times its short side can be seen after a centre crop."""

JPEGS = ("JPEG", "MPO")
"""What simplejpeg decodes: Pillow's pixels bit for bit (both carry libjpeg-turbo), in half of its time."""

OVERSAMPLING = 2
"""A fast decode keeps at least so many times the side that is needed: about 40 dB to the exact pixels."""

RATIOS = (3 / 4, 4 / 3)
LOG_RATIOS = (math.log(RATIOS[0]), math.log(RATIOS[1]))
ATTEMPTS = 10
JITTER_CHANCE = 0.8
_CROP = (0.9, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """How training varies an image.

    ``crop`` is the share of the area that a crop keeps (CLIP, section 2.4: a random square crop); ``jitter`` scales
    the colour changes of SupCon (brightness, contrast, saturation .4, hue .1, applied to 8 images in 10); ``flip``
    mirrors half of the images (it spoils texts that say left or right, and letters); ``gray`` is a probability.
    ``policy``: "autoaugment" makes one of ImageNet's 25 pairs of changes (FILIP, section 3.3), "radiograph" those of
    ConVIRT (section 4.2), "chest" MedCLIP's. ``shift`` takes the place of ``crop``: a picture is fitted to its frame's
    ``scale``, and the square is cut out at a random place (GLoRIA's 224 of 256 pixels). ``decode="fast"`` reads JPEGs
    much larger than needed at one to four eighths of their size.
    """

    crop: tuple[float, float] = _CROP
    flip: bool = False
    jitter: float = 0.0
    gray: float = 0.0
    policy: Literal["none", "autoaugment", "radiograph", "chest"] = "none"
    shift: bool = False
    decode: Literal["exact", "fast"] = "exact"

    def __post_init__(self) -> None:
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise UserError(f"crop={self.crop} is not a pair of shares of the image, such as (0.9, 1.0)")
        if not 0 <= self.jitter <= 2.5:
            raise UserError(f"jitter={self.jitter} is not between 0 (none) and 2.5; SupCon's strength is 1")
        if not 0 <= self.gray <= 1:
            raise UserError(f"gray={self.gray} is not a probability between 0 and 1")
        if self.shift and self.crop != _CROP:
            raise UserError("shift takes the place of crop; give one of the two")

    def shortest(self, size: int, *, side: int) -> int | None:
        """The short side that a decoded image needs for views of ``size``; None if all of it is wanted.

        ``side`` is what its frame scales to.
        """
        if self.decode == "exact":
            return None
        if self.shift:
            return OVERSAMPLING * side
        return math.ceil(OVERSAMPLING * size / math.sqrt(self.crop[0]))


FrameMode = Literal["crop", "squash", "pad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """How a picture is fitted into a square when nothing is augmented, as its model saw pictures.

    ``mode``: "crop" scales the shorter side and keeps the centre (CLIP); "squash" ignores the aspect ratio (ALIGN,
    LiT, Chinese-CLIP); "pad" scales the longer side and adds black. ``scale``: the side in pixels that is scaled to,
    if it is more than the square that is then cut out of the middle (ALIGN: 346 for 289; ImageNet: 256 for 224).
    """

    mode: FrameMode = "crop"
    scale: int | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        if self.mode not in get_args(FrameMode):
            raise UserError(f"the image mode {self.mode!r} is not known; it is {', '.join(get_args(FrameMode))}")

    def side(self, size: int) -> int:
        """The side that a picture is scaled to for a square of ``size``."""
        return max(self.scale or size, size)


FRAME = Frame()
"""CLIP's."""
RADIOGRAPHS = MappingProxyType({"radiograph": CONVIRT, "chest": CHEST})
"""Policies for radiographs, by name."""


def decode(image: ImageSource, *, max_pixels: int = MAX_PIXELS, shortest: int | None = None) -> Tensor:
    """The pixels of an image as it is meant to be seen: ``(3, H, W)`` uint8 RGB, a view of ``(H, W, 3)`` memory.

    Turned by its EXIF tag, transparent parts on white, 16-bit values scaled, the first frame of an animation; DICOM as
    its header says (`unicl.data.dicom`).
    With ``shortest``, a JPEG is decoded at one to four eighths of its size if no side gets shorter than that.
    Raises `BadImage` with a short reason; the size is read from the header before anything is decoded.
    """
    content = read_bytes(image)
    if not content:
        raise BadImage("empty file")
    if is_dicom(content):
        return dicom_pixels(content, max_pixels=max_pixels)
    try:
        with Image.open(BytesIO(content), formats=_formats()) as opened:
            _check_size(opened, max_pixels=max_pixels)
            pixels = _jpeg(opened, content, shortest=shortest)
            return _pixels(opened) if pixels is None else pixels
    except BadImage:
        raise
    # Broken files make Pillow's decoders fail in any way; each of them is this image's fault.
    except Exception as error:
        raise BadImage(_reason(error)) from error


def fit(image: Tensor, *, size: int, frame: Frame = FRAME) -> Tensor:
    """One view of an image for evaluation: ``(3, H, W)`` uint8 to ``(3, size, size)`` uint8, antialiased.

    Pixels and crop are torchvision's on a Pillow image, to one grey level (rarely two, by the rounding of weights).
    transformers' processors round the crop's corner down where torchvision rounds to even: a pixel up or left if
    what is cut off is 3 more than a multiple of 4.
    """
    return _centre(_framed(image, size=size, frame=frame), size=size)


def augment(image: Tensor, settings: Augment, *, size: int, rng: np.random.Generator, frame: Frame = FRAME) -> Tensor:
    """One random view of an image for training: ``(3, H, W)`` uint8 to ``(3, size, size)`` uint8.

    The same state of ``rng`` gives the same pixels, in any thread.
    """
    if settings.shift:
        view = _shifted(image, size=size, frame=frame, rng=rng)
    else:
        top, left, height, width = _random_box(*image.shape[1:], share=settings.crop, rng=rng)
        view = _resize(image[:, top : top + height, left : left + width], height=size, width=size)
    if settings.flip and rng.random() < 0.5:
        view = torch.from_numpy(view.numpy()[:, :, ::-1].copy())
    if settings.policy == "autoaugment":
        view = autoaugment(view, rng=rng)
    if settings.policy in RADIOGRAPHS:
        view = radiograph(view, RADIOGRAPHS[settings.policy], rng=rng)
    if settings.jitter and rng.random() < JITTER_CHANCE:
        view = _jittered(view, strength=settings.jitter, rng=rng)
    if settings.gray and rng.random() < settings.gray:
        view = _gray(view)
    return _dense(view)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(opened: Image.Image, *, max_pixels: int) -> None:
    width, height = opened.size
    if width * height > max_pixels:
        raise BadImage(f"too large: {width} x {height} pixels, the limit is {max_pixels:,}")
    if width * height == 0:
        raise BadImage("no pixels")


def _jpeg(opened: Image.Image, content: bytes, *, shortest: int | None) -> Tensor | None:
    """What simplejpeg makes of an upright gray or colour JPEG; None for all others, and for what it refuses."""
    if opened.format not in JPEGS or opened.mode not in ("RGB", "L") or _orientation(opened) in TURNS:
        return None
    side, factor = (0, 1.0) if shortest is None else (shortest, 2.0)
    try:
        from simplejpeg import decode_jpeg  # type: ignore[import-untyped]

        # Strict: whatever is odd is an error here, and Pillow says what it is, or reads it all the same.
        pixels = decode_jpeg(content, "RGB", min_height=side, min_width=side, min_factor=factor, strict=True)
    except (ImportError, ValueError, RuntimeError):
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _pixels(opened: Image.Image) -> Tensor:
    image = _upright(_rgb(opened), turn=_orientation(opened))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode[0] in "IF":
        return _eight_bit(image).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Gray values of 16 or 32 bits by their range: Pillow's own conversion cuts them off at 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode.startswith("I;16"):
        top = 65535.0
    else:
        top = next((limit for limit in (1.0, 255.0, 65535.0) if values.max() <= limit), values.max())
        top = 255.0 if image.mode == "I" and top == 1.0 else top
    return Image.fromarray((values.clip(min=0) * (255 / top)).round().astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    # A broken EXIF block is no reason to lose the picture.
    except Exception:
        return 1


def _upright(image: Image.Image, *, turn: int) -> Image.Image:
    return image.transpose(TURNS[turn]) if turn in TURNS else image


def _reason(error: Exception) -> str:
    text = str(error).casefold()
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return "too large: more pixels than Pillow allows"
    if "truncated" in text or "unexpected end" in text or isinstance(error, EOFError):
        return "cut off"
    return f"broken: {str(error).splitlines()[0][:80] if text.strip() else type(error).__name__}"


def _framed(image: Tensor, *, size: int, frame: Frame) -> Tensor:
    """An image at the scale of its frame, of which a square of ``size`` is then cut."""
    side, ways = frame.side(size), frame.interpolation
    match frame.mode:
        case "squash":
            return _resize(image, height=side, width=side, ways=ways)
        case "pad":
            return _padded(image, size=side, ways=ways)
        case "crop":
            image = _middle(image, longest=LONGEST)
            height, width = image.shape[1:]
            short = min(height, width)
            return _resize(image, height=side * height // short, width=side * width // short, ways=ways)


def _shifted(image: Tensor, *, size: int, frame: Frame, rng: np.random.Generator) -> Tensor:
    framed = _framed(image, size=size, frame=frame)
    top, left = (int(rng.integers(side - size + 1)) for side in framed.shape[1:])
    return _dense(framed[:, top : top + size, left : left + size])


def _centre(image: Tensor, *, size: int) -> Tensor:
    top, left = round((image.shape[1] - size) / 2), round((image.shape[2] - size) / 2)
    return _dense(image[:, top : top + size, left : left + size])


def _resize(image: Tensor, *, height: int, width: int, ways: str = "bicubic") -> Tensor:
    if image.shape[1:] == (height, width):
        return _dense(image)
    lost, narrowed = image.shape[1] - height, image.shape[2] - width
    if lost > max(0, 2 * narrowed):
        # Pillow 13's order of the two passes; what lies between them is cut to 0..255, so the order can be seen.
        image = _scaled(image, height=height, width=image.shape[2], ways=ways)
    return _scaled(image, height=height, width=width, ways=ways)


def _scaled(image: Tensor, *, height: int, width: int, ways: str) -> Tensor:
    box = _dense(image.permute(1, 2, 0)).permute(2, 0, 1)
    # On uint8 this is vectorised, keeps Pillow's rounding to one grey level and lets other threads run.
    return torch.nn.functional.interpolate(box[None], size=(height, width), mode=ways, antialias=True)[0]


def _dense(pixels: Tensor) -> Tensor:
    """Contiguous. torch would do it with all the threads of the trainer, and their meeting costs more than the work."""
    return torch.from_numpy(np.ascontiguousarray(pixels.numpy()))


def _middle(image: Tensor, *, longest: int) -> Tensor:
    height, width = image.shape[1:]
    limit = longest * min(height, width)
    tall, wide = min(height, limit), min(width, limit)
    top, left = (height - tall) // 2, (width - wide) // 2
    return image[:, top : top + tall, left : left + wide]


def _padded(image: Tensor, *, size: int, ways: str) -> Tensor:
    height, width = image.shape[1:]
    longer = max(height, width)
    tall, wide = max(1, round(size * height / longer)), max(1, round(size * width / longer))
    result = torch.zeros(3, size, size, dtype=torch.uint8)
    top, left = (size - tall) // 2, (size - wide) // 2
    result[:, top : top + tall, left : left + wide] = _resize(image, height=tall, width=wide, ways=ways)
    return result


def _random_box(
    height: int, width: int, *, share: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box of a random area and aspect ratio inside the image (the crop of Inception): top, left, height, width."""
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*share)
        ratio = np.exp(rng.uniform(*LOG_RATIOS))
        wide, tall = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            return int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1)), tall, wide
    tall = min(height, max(1, round(width / RATIOS[0])))
    wide = min(width, max(1, round(height * RATIOS[1])))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _jittered(image: Tensor, *, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue in a random order (SupCon, section 4; code: .4, .4, .4, .1)."""
    from torchvision.transforms.v2 import functional

    changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    reach = 0.4 * strength
    factors = [max(0.0, float(rng.uniform(1 - reach, 1 + reach))) for _ in changes]
    hue = float(rng.uniform(-0.1, 0.1)) * strength
    for step in rng.permutation(4):
        image = functional.adjust_hue(image, hue) if step == 3 else changes[step](image, factors[step])
    return image


def _gray(image: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    gray: Tensor = functional.rgb_to_grayscale(image, num_output_channels=3)
    return gray
