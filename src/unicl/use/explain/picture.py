"""An explanation drawn as one picture: the heat of the text, the class index, and a panel for each word."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from unicl.use.explain.fonts import Fonts
from unicl.use.explain.heat import STEPS, Range, Scale, explained_range, laid_over, levels, ranges
from unicl.use.explain.run import ClassIndex, Explanation
from unicl.use.explain.view import View, facts, index_words, number, shown, sought, title
from unicl.use.png import CARD, GAP, GROUND, INK, LETTERS, LINE, MARGIN, PAD, SMALL, SOFT

LARGE_SIDE, SMALL_SIDE = 460, 214
"""The longer side of a picture in the first row, and in the rows of words."""
TITLE: Final = 26
LEAST: Final = 920
"""Width of a sheet at least."""
RED, FAINT = "#e0242f", "#ffffff"
UNSEEN: Final = (18, 22, 29, 150)
BAR: Final = 260


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Panel:
    picture: Image.Image
    name: str
    value: str = ""
    note: str = ""


def draw(explanation: Explanation, *, fonts: Fonts, scale: Scale = "joint") -> Image.Image:
    """The sheet as an RGB picture; `unicl.use.explain.fonts.find_fonts` gives the fonts for `all_texts`."""
    large, small = _large(explanation, fonts, scale), _words(explanation, scale)
    width = max(LEAST, 2 * MARGIN + sum(panel.picture.width + GAP for panel in large) - GAP)
    columns = max(1, (width - 2 * MARGIN + GAP) // (small[0].picture.width + GAP))
    rows = [large, *(small[start : start + columns] for start in range(0, len(small), columns))]
    head = _Head.of(explanation, fonts, width=width - 2 * MARGIN)
    foot = _Head.below(explanation, fonts, scale, width=width - 2 * MARGIN)
    height = MARGIN + head.height + sum(_height(row) + GAP for row in rows) + foot.height + BAR // 6 + MARGIN
    whole = Image.new("RGB", (width, height), GROUND)
    pen = ImageDraw.Draw(whole)
    y = head.draw(pen, fonts, y=MARGIN)
    for row in rows:
        x = MARGIN
        for panel in row:
            _put(whole, pen, panel, fonts, at=(x, y), height=_height(row))
            x += panel.picture.width + GAP
        y += _height(row) + GAP
    y = _colour_bar(whole, pen, explanation, fonts, scale, at=(MARGIN, y))
    foot.draw(pen, fonts, y=y)
    return whole


def all_texts(explanation: Explanation) -> tuple[str, ...]:
    """All that is written on a sheet, to find fonts for it."""
    index = () if explanation.index is None else (index_words(explanation.index),)
    return (title(explanation), *facts(explanation), *explanation.words, *index, *explanation.notes, "…0123456789")


def index_picture(index: ClassIndex, view: View, *, fonts: Fonts) -> Image.Image:
    """FILIP's picture: the number of each place's best part, red where it is one of the label's (section 4.4)."""
    picture = Image.blend(view.picture, Image.new("RGB", view.picture.size, "#20242c"), 0.35)
    _shade(picture, view)
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = view.corners
    rows, columns = index.best.shape
    wide, tall = (right - left) / columns, (bottom - top) / rows
    size = max(7, min(24, round(0.5 * min(wide, tall))))
    for row, column in np.ndindex(rows, columns):
        hit = bool(index.hits[row, column])
        text = str(int(index.best[row, column]))
        x, y = left + (column + 0.5) * wide, top + (row + 0.5) * tall
        at = (x - fonts.length(text, size) / 2, y)
        if hit:
            edges = (x - wide / 2, y - tall / 2, x + wide / 2 - 1, y + tall / 2 - 1)
            pen.rectangle(edges, outline=RED, width=max(1, size // 9))
        for shift in (-1, 1):
            fonts.draw(pen, text, at=(at[0] + shift, at[1] + shift), size=size, colour="#ffffff" if hit else "#000000")
        fonts.draw(pen, text, at=at, size=size, colour=RED if hit else FAINT)
    return picture


def heated(explanation: Explanation, view: View, *, word: int | None, shown_range: Range) -> Image.Image:
    """The picture under the heat of a word, or of the whole text for None; what the model did not see is darker."""
    left, top, right, bottom = view.corners
    heat = explanation.whole if word is None else explanation.heat[word]
    drawn = laid_over(view.picture, levels(heat, shown_range, size=(right - left, bottom - top)), corner=(left, top))
    _shade(drawn, view)
    return drawn


def _shade(picture: Image.Image, view: View) -> None:
    for box in view.shaded:
        dark = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), UNSEEN[:3])
        picture.paste(dark, box[:2], Image.new("L", dark.size, UNSEEN[3]))


def _large(explanation: Explanation, fonts: Fonts, scale: Scale) -> list[_Panel]:
    view = shown(explanation, box=(LARGE_SIDE, LARGE_SIDE))
    whole = heated(explanation, view, word=None, shown_range=ranges(explanation, scale=scale).whole)
    best = "" if explanation.method == "gradients" else "the best of its words at each place"
    panels = [
        _Panel(picture=view.picture, name="picture"),
        _Panel(picture=whole, name="whole text", value=number(explanation.score), note=best),
    ]
    if explanation.index is not None:
        hits = explanation.index.hits
        panels.append(
            _Panel(
                picture=index_picture(explanation.index, view, fonts=fonts),
                name=f"class index: {sought(explanation.index)}",
                value=f"{int(hits.sum())} of {hits.numel()} places",
                note="the number of each place's best part of the text; red: its own",
            )
        )
    return panels


def _words(explanation: Explanation, scale: Scale) -> list[_Panel]:
    view, each = shown(explanation, box=(SMALL_SIDE, SMALL_SIDE)), ranges(explanation, scale=scale).words
    return [
        _Panel(
            picture=heated(explanation, view, word=place, shown_range=each[place]),
            name=word,
            value=number(explanation.scores[place]),
        )
        for place, word in enumerate(explanation.words)
    ]


def _height(row: list[_Panel]) -> int:
    lines = 2 if any(panel.note for panel in row) else 1
    return max(panel.picture.height for panel in row) + PAD + lines * (SMALL + 9)


def _put(
    whole: Image.Image, pen: ImageDraw.ImageDraw, panel: _Panel, fonts: Fonts, *, at: tuple[int, int], height: int
) -> None:
    x, y = at
    right = x + panel.picture.width
    pen.rounded_rectangle((x - 1, y - 1, right, y + height), radius=8, fill=CARD, outline=LINE)
    whole.paste(panel.picture, (x, y))
    line = y + panel.picture.height + PAD // 2 + LETTERS // 2 + 2
    taken = fonts.length(panel.value, SMALL)
    fonts.draw(pen, panel.value, at=(right - 8 - taken, line), size=SMALL, colour=SOFT)
    name = fonts.shortened(panel.name, size=LETTERS, width=right - x - taken - 26)
    fonts.draw(pen, name, at=(x + 8, line), size=LETTERS, colour=INK)
    note = fonts.shortened(panel.note, size=SMALL - 2, width=right - x - 16)
    fonts.draw(pen, note, at=(x + 8, line + SMALL + 8), size=SMALL - 2, colour=SOFT)


@dataclass(frozen=True, slots=True)
class _Head:
    """Lines of text, each with its size and colour."""

    lines: tuple[tuple[str, int, str], ...]

    @classmethod
    def of(cls, explanation: Explanation, fonts: Fonts, *, width: int) -> "_Head":
        """What stands above the pictures."""
        first = fonts.wrapped(title(explanation), size=TITLE, width=width, lines=3)
        others = [line for fact in facts(explanation) for line in _wrapped(fonts, fact, width)]
        return cls((*((line, TITLE, INK) for line in first), *((line, SMALL, SOFT) for line in others)))

    @classmethod
    def below(cls, explanation: Explanation, fonts: Fonts, scale: Scale, *, width: int) -> "_Head":
        """What stands below them."""
        index = [] if explanation.index is None else [f"Parts: {index_words(explanation.index)}"]
        texts = [f"{explained_range(explanation, scale=scale)}.", *index, *(f"Note: {n}." for n in explanation.notes)]
        return cls(tuple((line, SMALL, SOFT) for text in texts for line in _wrapped(fonts, text, width)))

    @property
    def height(self) -> int:
        """How many pixels it needs."""
        return sum(ceil(1.45 * size) for _, size, _ in self.lines) + GAP

    def draw(self, pen: ImageDraw.ImageDraw, fonts: Fonts, *, y: int) -> int:
        """Draw it from ``y`` on; returns where what follows begins."""
        for line, size, colour in self.lines:
            height = ceil(1.45 * size)
            fonts.draw(pen, line, at=(MARGIN, y + height / 2), size=size, colour=colour)
            y += height
        return y + GAP


def _wrapped(fonts: Fonts, text: str, width: int) -> list[str]:
    wrap: Callable[[str], list[str]] = partial(fonts.wrapped, size=SMALL, width=width, lines=4)
    return wrap(text)


def _colour_bar(
    whole: Image.Image,
    pen: ImageDraw.ImageDraw,
    explanation: Explanation,
    fonts: Fonts,
    scale: Scale,
    *,
    at: tuple[int, int],
) -> int:
    """The scale of colours over a middle grey, with the numbers of its ends; returns where what follows begins."""
    x, y = at
    thick = SMALL
    low, high = "lowest", "highest"
    if scale == "joint":
        joint = ranges(explanation, scale=scale).words[0]
        low, high = number(joint.low), number(joint.high)
    start = x + ceil(fonts.length(low, SMALL)) + 10
    steps = np.tile(np.linspace(0, 1, STEPS, dtype=np.float32)[None], (thick, 1))
    ramp = laid_over(Image.new("RGB", (STEPS, thick), "#b9c0ca"), steps, corner=(0, 0)).resize((BAR, thick))
    whole.paste(ramp, (start, y))
    fonts.draw(pen, low, at=(x, y + thick / 2), size=SMALL, colour=SOFT)
    fonts.draw(pen, high, at=(start + BAR + 10, y + thick / 2), size=SMALL, colour=SOFT)
    return y + thick + 14
