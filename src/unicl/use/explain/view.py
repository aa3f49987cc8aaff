"""What all forms of an explanation share: the picture, large enough to see, and what is said about it."""

from dataclasses import dataclass, replace
from math import floor, log10
from typing import Final

from PIL import Image

from unicl.use.explain.area import Area
from unicl.use.explain.run import ClassIndex, Explanation

LONGEST: Final = 3.0
"""Of a picture longer than this many times its shorter side, only what the model saw is shown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """A picture and the box on it that the model saw, both in pixels as drawn."""

    picture: Image.Image
    area: Area

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """The box in whole pixels: left, top, right, bottom; at least one pixel in each direction."""
        left, top = round(self.area.left), round(self.area.top)
        return left, top, max(round(self.area.right), left + 1), max(round(self.area.bottom), top + 1)

    @property
    def shaded(self) -> tuple[tuple[int, int, int, int], ...]:
        """The boxes of the picture that the model did not see."""
        width, height = self.picture.size
        left, top, right, bottom = self.corners
        boxes = (
            (0, 0, width, top),
            (0, bottom, width, height),
            (0, max(top, 0), left, min(bottom, height)),
            (right, max(top, 0), width, min(bottom, height)),
        )
        return tuple(box for box in boxes if box[2] > box[0] and box[3] > box[1])


def shown(explanation: Explanation, *, box: tuple[int, int]) -> View:
    """The explained picture as large as fits into ``box`` (width, height), small ones enlarged."""
    view = _reasonable(explanation)
    scale = min(box[0] / view.picture.width, box[1] / view.picture.height)
    width, height = (max(1, round(side * scale)) for side in view.picture.size)
    ways = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    across, down = width / view.picture.width, height / view.picture.height
    return View(picture=view.picture.resize((width, height), ways), area=view.area.scaled(across, down))


def title(explanation: Explanation) -> str:
    """The text, the model and the score."""
    return f'"{explanation.text}", {explanation.model}: {number(explanation.score)}'


def facts(explanation: Explanation) -> tuple[str, ...]:
    """What was looked at, and how, in a line each."""
    height, width = explanation.whole.shape
    how = {
        "products": "each place times each part of the text, the very products that the model compares",
        "attention": "where each word looks, as the model compares words with places",
        "gradients": "gradient times states (Grad-CAM), of each score alone",
    }[explanation.method]
    return (f"{explanation.image}, {height} x {width} places; {how}",)


def number(value: float) -> str:
    """A number with three digits that tell something; small ones with more places."""
    if not value:
        return "0"
    if abs(value) >= 0.1:
        return f"{value:.3f}"
    places = 2 - floor(log10(abs(value)))
    return f"{value:.{places}f}" if places <= 6 else f"{value:.2e}"


def index_words(index: ClassIndex) -> str:
    """Which number stands for which part of the text, and which are the label's."""
    parts = " · ".join(f"{place} {part}" for place, part in enumerate(index.parts))
    wanted = ", ".join(map(str, index.wanted))
    return f"{parts}; {sought(index)}: {wanted}"


def sought(index: ClassIndex) -> str:
    """What a class index looks for."""
    return index.label or "any word of the text"


def _reasonable(explanation: Explanation) -> View:
    """The picture, or of a very long one what the model saw: the square itself, as its frame has made it."""
    picture, area = explanation.picture, explanation.area
    width, height = picture.size
    if max(width, height) <= LONGEST * min(width, height):
        return View(picture=picture, area=area)
    left, top, right, bottom = round(area.left), round(area.top), round(area.right), round(area.bottom)
    cut = picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    side = max(cut.size)
    # A squashed picture is shown as it was squashed: a line of one pixel has no place for any heat.
    square = cut.resize((side, side), Image.Resampling.BICUBIC)
    return View(picture=square, area=replace(area, left=0.0, top=0.0, right=float(side), bottom=float(side)))
