"""A contact sheet drawn as one picture."""

from dataclasses import dataclass, replace
from functools import cache
from math import ceil, sqrt

from PIL import Image, ImageDraw, ImageFont, ImageOps

from unicl.use.sheet import Bar, Part, Sheet, Tile, thumbnail

FONTS = (
    ("NotoSansCJK-Regular.ttc", 2),
    ("NotoSansCJKsc-Regular.otf", 0),
    ("NotoSansSC-Regular.otf", 0),
    ("SourceHanSansSC-Regular.otf", 0),
    ("wqy-microhei.ttc", 0),
    ("wqy-zenhei.ttc", 0),
    ("DroidSansFallbackFull.ttf", 0),
    ("PingFang.ttc", 0),
    ("Hiragino Sans GB.ttc", 0),
    ("STHeiti Light.ttc", 0),
    ("msyh.ttc", 0),
    ("simhei.ttf", 0),
    ("Arial Unicode.ttf", 0),
    ("DejaVuSans.ttf", 0),
    ("arial.ttf", 0),
)
"""Fonts by file name and face, those with Chinese first; without any, Pillow's own, which has Latin letters only."""

GROUND, CARD, WELL, LINE = "#f6f7f9", "#ffffff", "#eceff3", "#dfe3ea"
INK, SOFT, FILL, TRACK = "#1a2230", "#5b6675", "#3d6fb4", "#e3e8f0"
MARGIN, GAP, PAD = 36, 20, 14
WIDE, TALL = 260, 195
LETTERS, SMALL, LARGE = 18, 15, 28
QUESTION = 84
"""Height in pixels of a picture in the question."""

LINE_HEIGHT = 40
LONGEST = 1000

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class _Piece:
    """A text or a picture of the question; ``x`` from the left, ``y`` the middle of its line."""

    x: int
    y: int
    content: str | Image.Image
    size: int = LARGE
    colour: str = INK


def draw(sheet: Sheet) -> Image.Image:
    """The sheet as an RGB picture: the question, then tiles in a grid that is a little wider than high."""
    columns = min(max(3, ceil(sqrt(1.3 * len(sheet.tiles)))), 12)
    width = 2 * MARGIN + columns * (WIDE + GAP) - GAP
    pieces, bottom = _question(sheet, width=width)
    top = bottom + 56
    height = TALL + max((_facts_height(tile) for tile in sheet.tiles), default=0)
    rows = ceil(len(sheet.tiles) / columns)
    whole = Image.new("RGB", (width, top + max(0, rows * (height + GAP) - GAP) + MARGIN), GROUND)
    pen = ImageDraw.Draw(whole)
    for piece in pieces:
        _put(whole, pen, piece)
    _write(pen, sheet.note, at=(MARGIN, bottom + 24), size=SMALL, colour=SOFT, width=width - 2 * MARGIN)
    for number, tile in enumerate(sheet.tiles):
        row, column = divmod(number, columns)
        _tile(whole, pen, tile, x=MARGIN + column * (WIDE + GAP), y=top + row * (height + GAP), height=height)
    return whole


def _question(sheet: Sheet, *, width: int) -> tuple[list[_Piece], int]:
    """The pieces of the question in lines that fit the width, and where the last line ends."""
    pieces: list[_Piece] = []
    x, line = MARGIN, QUESTION if any(part.image is not None for part in sheet.parts) else LINE_HEIGHT
    y = MARGIN + line // 2
    for part in sheet.parts:
        own, needed = _pieces(part, width=width - 2 * MARGIN)
        if x > MARGIN and x + needed > width - MARGIN:
            x, y = MARGIN, y + line + 10
        pieces += [replace(piece, x=x + piece.x, y=y) for piece in own]
        x += needed + 16
    return pieces, y + line // 2


def _pieces(part: Part, *, width: int) -> tuple[list[_Piece], int]:
    """The pieces of one part from x = 0, and their width together."""
    pieces: list[_Piece] = []
    x, size, colour = 0, LARGE, INK
    if part.sign:
        pieces.append(_Piece(x, 0, part.sign, colour=SOFT))
        x += _length(part.sign, LARGE) + 16
    picture = thumbnail(part.image)
    if picture is not None:
        picture.thumbnail((2 * QUESTION, QUESTION))
        pieces.append(_Piece(x, 0, picture))
        x, size, colour = x + picture.width + 12, SMALL, SOFT
    text = _shortened(part.text, size=size, width=width - x)
    pieces.append(_Piece(x, 0, text, size, colour))
    return pieces, x + _length(text, size)


def _put(whole: Image.Image, pen: ImageDraw.ImageDraw, piece: _Piece) -> None:
    if isinstance(piece.content, Image.Image):
        _paste(whole, piece.content, at=(piece.x, piece.y - piece.content.height // 2), radius=8)
    else:
        pen.text((piece.x, piece.y), piece.content, fill=piece.colour, font=_font(piece.size), anchor="lm")


def _tile(whole: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, *, x: int, y: int, height: int) -> None:
    pen.rounded_rectangle((x, y, x + WIDE, y + height), radius=10, fill=CARD, outline=LINE)
    well = Image.new("RGB", (WIDE - 2, TALL - 1), WELL)
    picture = thumbnail(tile.image)
    if picture is None:
        middle = (well.width // 2, well.height // 2)
        ImageDraw.Draw(well).text(middle, "no picture", fill=SOFT, font=_font(SMALL), anchor="mm")
    else:
        picture = ImageOps.contain(picture, well.size)
        well.paste(picture, ((well.width - picture.width) // 2, (well.height - picture.height) // 2))
    _paste(whole, well, at=(x + 1, y + 1), radius=9, corners=(True, True, False, False))
    left, right, top = x + PAD, x + WIDE - PAD, y + TALL + PAD
    for number, bar in enumerate(tile.bars):
        top = _bar(pen, bar, rank=tile.rank, first=number == 0, box=(left, top, right))
    _write(pen, tile.name, at=(left, top + SMALL // 2), size=SMALL, colour=SOFT, width=right - left)


def _bar(pen: ImageDraw.ImageDraw, bar: Bar, *, rank: int | None, first: bool, box: tuple[int, int, int]) -> int:
    """Name or rank on the left, number on the right, the bar below; returns where the next line begins."""
    left, top, right = box
    size, thick = (LETTERS, 6) if first else (SMALL, 4)
    numbers = _length(bar.words, size)
    name = bar.name or ("" if rank is None else str(rank))
    pen.text((right, top + size // 2), bar.words, fill=INK if first else SOFT, font=_font(size), anchor="rm")
    colour = INK if first and bar.name else SOFT
    _write(pen, name, at=(left, top + size // 2), size=size, colour=colour, width=right - left - numbers - 10)
    line = top + size + 7
    pen.rounded_rectangle((left, line, right, line + thick), radius=thick // 2, fill=TRACK)
    if (full := round((right - left) * min(1.0, bar.share))) >= thick:
        pen.rounded_rectangle((left, line, left + full, line + thick), radius=thick // 2, fill=FILL)
    return line + thick + 10


def _facts_height(tile: Tile) -> int:
    first, others = LETTERS + 23, max(0, len(tile.bars) - 1) * (SMALL + 21)
    return 2 * PAD + (first if tile.bars else 0) + others + SMALL


def _paste(
    whole: Image.Image,
    picture: Image.Image,
    *,
    at: tuple[int, int],
    radius: int,
    corners: tuple[bool, bool, bool, bool] = (True, True, True, True),
) -> None:
    # Drawn four times as large and made smaller: Pillow's own corners are jagged.
    mask = Image.new("L", (4 * picture.width, 4 * picture.height), 0)
    box = (0, 0, mask.width - 1, mask.height - 1)
    ImageDraw.Draw(mask).rounded_rectangle(box, radius=4 * radius, fill=255, corners=corners)
    whole.paste(picture, at, mask.resize(picture.size, Image.Resampling.BOX))


def _write(pen: ImageDraw.ImageDraw, text: str, *, at: tuple[int, int], size: int, colour: str, width: int) -> None:
    pen.text(at, _shortened(text, size=size, width=width), fill=colour, font=_font(size), anchor="lm")


def _shortened(text: str, *, size: int, width: int) -> str:
    """The text on one line of at most ``width`` pixels; dots stand for its middle, since names differ at their ends."""
    text = " ".join(text.split())[:LONGEST]
    if _length(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        kept = (low + high + 1) // 2
        low, high = (kept, high) if _length(_cut(text, kept), size) <= width else (low, kept - 1)
    return _cut(text, low)


def _cut(text: str, kept: int) -> str:
    end = kept // 2
    return f"{text[: kept - end]}…{text[len(text) - end :]}"


def _length(text: str, size: int) -> int:
    return ceil(_font(size).getlength(text))


@cache
def _font(size: int) -> Font:
    for name, face in FONTS:
        try:
            return ImageFont.truetype(name, size, index=face)
        except OSError:
            continue
    return ImageFont.load_default(size)
