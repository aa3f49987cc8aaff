"""Composites: several emoji on one canvas at known places, with a caption that names them in another order."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont
from torch import Tensor

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""

CANVAS: Final = 224
WHITE: Final = (255, 255, 255)
SIDES: Final = (0.62, 0.92)
"""The longer side of a drawing, as a share of its cell."""
UNSAID: Final = frozenset(
    "a an and as at by for from in into of off on or out over the to under with".split()  # noqa: SIM905
)
"""Words of names that say nothing that could be pointed at."""
COLOURS: Final = ("#d62728", "#1f6fd6", "#1a9850", "#b8860b")
INK: Final = "#1a2230"
GAP: Final = 16
LINE: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One artist's drawing of a thing, cut to its ink on white, and the thing's name."""

    name: str
    picture: Image.Image

    @property
    def words(self) -> frozenset[str]:
        """The words of the name that mean something."""
        found = re.findall(r"[^\W_]+", self.name.lower())
        return frozenset(word for word in found if word not in UNSAID and len(word) > 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A thing on the canvas: its name and the words of it, the box of its ink, its cell."""

    name: str
    words: frozenset[str]
    box: Box
    cell: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite:
    """A canvas ``(3, 224, 224)`` of uint8 pixels, what is where, and a caption that names it in this order."""

    pixels: Tensor
    placed: tuple[Placed, ...]
    caption: str

    def meant(self, word: str) -> Placed | None:
        """The one thing whose name has a word, if any has it."""
        return next((thing for thing in self.placed if word.lower() in thing.words), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """``cells`` by ``cells`` cells, of which from ``fewest`` to ``most`` hold a thing."""

    cells: int = 2
    fewest: int = 2
    most: int = 4


def drawings(table: Path) -> list[Drawing]:
    """The drawings of one of the emoji set's tables."""
    with table.open(encoding="utf-8", newline="") as lines:
        return [Drawing(name=row["title"], picture=ink(table.parent / row["file"])) for row in csv.DictReader(lines)]


def ink(path: Path) -> Image.Image:
    """A picture on white, cut to what is not white."""
    with Image.open(path) as opened:
        drawn = opened.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", drawn.size, (*WHITE, 255)), drawn).convert("RGB")
    return flat.crop(ImageChops.difference(flat, Image.new("RGB", flat.size, WHITE)).getbbox())


def composites(known: Sequence[Drawing], *, number: int, seed: int, layout: Layout = Layout()) -> list[Composite]:
    """``number`` composites of known drawings, drawn by a seed."""
    rng = np.random.default_rng(seed)
    return [_composite(known, rng=rng, layout=layout) for _ in range(number)]


def _composite(known: Sequence[Drawing], *, rng: np.random.Generator, layout: Layout) -> Composite:
    number = int(rng.integers(layout.fewest, layout.most + 1))
    chosen = _chosen(known, number, rng=rng)
    cells = rng.permutation(layout.cells**2)[:number]
    ground = WHITE if rng.random() < 0.5 else tuple(int(level) for level in rng.integers(215, 256, 3))
    canvas = Image.new("RGB", (CANVAS, CANVAS), ground)
    placed = [_placed(canvas, each, int(k), rng=rng, cells=layout.cells) for each, k in zip(chosen, cells, strict=True)]
    placed = [placed[k] for k in rng.permutation(number)]
    pixels = torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1)
    link = " and " if rng.random() < 0.5 else ", "
    caption = ", ".join(thing.name for thing in placed[:-1]) + link + placed[-1].name
    return Composite(pixels=pixels, placed=tuple(placed), caption=caption)


def _chosen(known: Sequence[Drawing], number: int, *, rng: np.random.Generator) -> list[Drawing]:
    """Things whose names share no word, so that each word has one right place."""
    chosen: list[Drawing] = []
    used: set[str] = set()
    while len(chosen) < number:
        drawing = known[int(rng.integers(len(known)))]
        if drawing.words and not drawing.words & used:
            chosen.append(drawing)
            used |= drawing.words
    return chosen


def _placed(canvas: Image.Image, drawing: Drawing, cell: int, *, rng: np.random.Generator, cells: int) -> Placed:
    """Draw a picture somewhere in a cell; its white takes the colour of the ground."""
    side = CANVAS / cells
    scale = float(rng.uniform(*SIDES)) * side / max(drawing.picture.size)
    width, height = (max(round(length * scale), 1) for length in drawing.picture.size)
    row, column = divmod(cell, cells)
    left = round(column * side + float(rng.random()) * (side - width))
    top = round(row * side + float(rng.random()) * (side - height))
    box = (left, top, left + width, top + height)
    picture = drawing.picture.resize((width, height), Image.Resampling.LANCZOS)
    canvas.paste(ImageChops.multiply(canvas.crop(box), picture), box)
    around = (column * side, row * side, (column + 1) * side, (row + 1) * side)
    return Placed(name=drawing.name, words=drawing.words, box=box, cell=around)


def sheet(chosen: Sequence[Composite], best: Mapping[str, Sequence[Sequence[int]]], *, side: int) -> Image.Image:
    """Composites in a row for each model: boxes in thin lines, the best place of each name as a square of its colour.

    ``best`` has, by model, the best place of each name of each composite on a map of ``side`` by ``side`` places.
    """
    width = GAP + len(chosen) * (CANVAS + GAP)
    legend = LINE * max(len(each.placed) for each in chosen) + GAP
    page = Image.new("RGB", (width, len(best) * (CANVAS + 2 * LINE) + legend), WHITE)
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(15)
    for row, (name, places) in enumerate(best.items()):
        top = row * (CANVAS + 2 * LINE)
        pen.text((GAP, top + LINE // 2), name, fill=INK, font=font)
        for k, (composite, own) in enumerate(zip(chosen, places, strict=True)):
            page.paste(_marked(composite, own, side=side), (GAP + k * (CANVAS + GAP), top + 3 * LINE // 2))
    for k, composite in enumerate(chosen):
        for line, thing in enumerate(composite.placed):
            at = (GAP + k * (CANVAS + GAP), len(best) * (CANVAS + 2 * LINE) + line * LINE)
            pen.text(at, thing.name, fill=COLOURS[line], font=font)
    return page.quantize(128)


def _marked(composite: Composite, best: Sequence[int], *, side: int) -> Image.Image:
    picture = Image.fromarray(composite.pixels.permute(1, 2, 0).numpy())
    pen = ImageDraw.Draw(picture)
    step = CANVAS / side
    for thing, place, colour in zip(composite.placed, best, COLOURS, strict=False):
        row, column = divmod(place, side)
        pen.rectangle(thing.box, outline=colour)
        corners = (column * step + 2, row * step + 2, (column + 1) * step - 3, (row + 1) * step - 3)
        pen.rectangle(corners, outline=colour, width=4)
    pen.rectangle((0, 0, CANVAS - 1, CANVAS - 1), outline="#dfe3ea")
    return picture
