"""Heat as colours: the range that is shown, smooth enlargement, and a palette that lets the picture through."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unicl.use.explain.run import Explanation

Scale = Literal["joint", "word"]
STEPS: Final = 256
STRENGTH: Final = 0.8
"""How much of the picture the highest heat covers."""
_STOPS: Final = (
    (0.0, (38, 16, 92), 0.0),
    (0.25, (88, 28, 130), 0.42),
    (0.5, (190, 46, 104), 0.72),
    (0.75, (244, 120, 50), 0.88),
    (1.0, (255, 226, 92), 1.0),
)
"""Share of the range, colour, and how much of the picture is covered, as a share of `STRENGTH`."""

Levels = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Range:
    """What the lowest and the highest colour stand for."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1; 0 if all values are the same."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0) if self.high > self.low else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """The range of the whole text, and of each word."""

    whole: Range
    words: tuple[Range, ...]


def ranges(explanation: Explanation, *, scale: Scale) -> Ranges:
    """Which values the colours stand for: those of all words together (as GLoRIA's code), or each word's own.

    Gradients begin at 0, and there the whole text is a score of its own with a range of its own.
    """
    heat, by_gradients = explanation.heat, explanation.method == "gradients"
    each = tuple(_range(word, from_zero=by_gradients) for word in heat)
    whole = _range(explanation.whole, from_zero=by_gradients)
    if scale == "word":
        return Ranges(whole=whole, words=each)
    joint = _range(heat, from_zero=by_gradients)
    return Ranges(whole=whole if by_gradients else joint, words=(joint,) * len(each))


def explained_range(explanation: Explanation, *, scale: Scale) -> str:
    """What the colours stand for, in words."""
    what = {
        "products": "the product of a place and a word",
        "attention": "how much a word looks at a place",
        "gradients": "how much a place speaks for a score, by gradients",
    }[explanation.method]
    if scale == "word":
        return f"Colours: {what}; each picture from its own lowest to its own highest"
    if explanation.method == "gradients":
        return f"Colours: {what}; one scale for all words, the whole text has its own"
    return f"Colours: {what}; one scale for all words"


def levels(heat: Tensor, shown: Range, *, size: tuple[int, int]) -> Levels:
    """Heat ``(h, w)`` enlarged smoothly to ``size`` (width, height), 0 to 1 over the range."""
    width, height = size
    if shown.high <= shown.low:
        return np.zeros((height, width), dtype=np.float32)
    shares = (heat.double() - shown.low) / (shown.high - shown.low)
    wide = F.interpolate(shares[None, None], size=(height, width), mode="bicubic", align_corners=False)
    return wide[0, 0].clamp(0, 1).float().numpy()


def colours() -> tuple[Pixels, Pixels]:
    """The palette: ``(STEPS, 3)`` colours, and ``(STEPS,)`` how much each covers, 0 to 255 at full strength."""
    at = np.linspace(0, 1, STEPS)
    stops = [stop for stop, _, _ in _STOPS]
    assert all(one < two for one, two in pairwise(stops))
    channels = [np.interp(at, stops, [colour[c] for _, colour, _ in _STOPS]) for c in range(3)]
    cover = np.interp(at, stops, [share for _, _, share in _STOPS])
    return np.stack(channels, axis=1).round().astype(np.uint8), (255 * cover).round().astype(np.uint8)


def layer(heat: Levels) -> Image.Image:
    """Levels as a picture with a palette and transparency, small as a file."""
    palette, cover = colours()
    drawn = Image.fromarray((heat * (STEPS - 1)).round().astype(np.uint8))
    drawn.putpalette(palette.tobytes())
    drawn.info["transparency"] = cover.tobytes()
    return drawn


def laid_over(picture: Image.Image, heat: Levels, *, corner: tuple[int, int]) -> Image.Image:
    """The picture under levels whose upper left corner is at ``corner``; what they do not reach stays as it is."""
    palette, cover = colours()
    places = (heat * (STEPS - 1)).round().astype(np.uint8)
    mask = Image.fromarray((cover[places] * STRENGTH).round().astype(np.uint8))
    result = picture.convert("RGB")
    result.paste(Image.fromarray(palette[places]), corner, mask)
    return result


def _range(heat: Tensor, *, from_zero: bool) -> Range:
    low, high = float(heat.min()), float(heat.max())
    assert torch.isfinite(heat).all()
    return Range(0.0 if from_zero else low, high)
