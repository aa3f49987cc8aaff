"""Fonts that have the letters of a text: what is drawn is looked at first, so that no letter becomes a box."""

import os
import subprocess
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Final

from PIL import ImageDraw, ImageFont

from unicl.errors import UserError
from unicl.use.png import FONTS

VARIABLE: Final = "UNICL_FONT"
"""The environment's name for what ``--font`` gives."""
_NOWHERE: Final = ("\U0010ffff", "\ufffe")
"""Code points that no font draws."""
_SIZE: Final = 32
_UNDRAWN: Final = ("Cc", "Cf", "Mn", "Me", "Zs", "Zl", "Zp")
"""Categories of Unicode that have no ink of their own, or that stand on another letter."""

Face = tuple[str, int]
"""A font's file and its number in that file; an empty name is Pillow's own."""


@dataclass(frozen=True, slots=True)
class Fonts:
    """Fonts in the order in which they are asked for a letter, and the letters that none of them has."""

    faces: tuple[Face, ...]
    lacking: str

    def written(self, text: str) -> str:
        """The text with the code points of letters that no font has in their place, on one line."""
        line = " ".join(text.split())
        return "".join(f"[{ord(letter):X}]" if letter in self.lacking else letter for letter in line)

    def length(self, text: str, size: int) -> float:
        """How many pixels wide a text is drawn."""
        return sum(_font(face, size).getlength(run) for face, run in self._runs(self.written(text)))

    def draw(self, pen: ImageDraw.ImageDraw, text: str, *, at: tuple[float, float], size: int, colour: str) -> None:
        """Draw a text on one line from its left; ``at`` is the middle of its height there."""
        x, y = at
        for face, run in self._runs(self.written(text)):
            font = _font(face, size)
            # Fonts differ in height, and share a line by where their letters stand.
            pen.text((x, y + 0.36 * size), run, fill=colour, font=font, anchor="ls")
            x += font.getlength(run)

    def shortened(self, text: str, *, size: int, width: float) -> str:
        """The text with dots for its end if it is wider than ``width``."""
        if self.length(text, size) <= width:
            return text
        while text and self.length(text + "…", size) > width:
            text = text[:-1]
        return text + "…"

    def wrapped(self, text: str, *, size: int, width: float, lines: int) -> list[str]:
        """The text in lines of at most ``width``, the last one shortened if there are more than ``lines``."""
        found, rest = [""], list(_pieces(text))
        while rest:
            longer = found[-1] + rest[0]
            if found[-1] and self.length(longer, size) > width:
                if len(found) == lines:
                    found[-1] = self.shortened(found[-1] + "".join(rest), size=size, width=width)
                    break
                found.append("")
                continue
            found[-1] = longer
            rest.pop(0)
        return [self.shortened(line.strip(), size=size, width=width) for line in found]

    def _runs(self, text: str) -> Iterator[tuple[Face, str]]:
        last = self.faces[0]
        chosen: list[tuple[Face, str]] = []
        for letter in text:
            if not _undrawn(letter):
                last = next((face for face in self.faces if covers(face, letter)), self.faces[0])
            chosen.append((last, letter))
        for face, letters in groupby(chosen, key=lambda pair: pair[0]):
            yield face, "".join(letter for _, letter in letters)


def find_fonts(texts: Sequence[str], *, given: Path | None = None) -> Fonts:
    """Fonts that together have the letters of some texts, as far as this machine has them.

    First the given one (or that of the environment's `UNICL_FONT`), then a usual one, then whichever has what is still
    missing, also by fontconfig. Raises `UserError` if the given file is no font.
    """
    asked = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    usual = [face for face in FONTS if _opens(face)]
    faces = [_given(asked)] if asked is not None else []
    faces += usual[:1] or [("", 0)]
    missing = sorted({letter for text in texts for letter in text if not _undrawn(letter)})
    for face in usual[1:]:
        missing = _still_missing(missing, faces)
        if any(covers(face, letter) for letter in missing):
            faces.append(face)
    while missing := _still_missing(missing, faces):
        found = next(((one, face) for one in missing for face in _fontconfig(one) if covers(face, one)), None)
        if found is None:
            break
        faces.append(found[1])
    return Fonts(faces=tuple(faces), lacking="".join(missing))


def advice(fonts: Fonts) -> str:
    """What to do about letters that no font has; "" if there are none."""
    if not fonts.lacking:
        return ""
    shown = "".join(fonts.lacking[:12]) + ("…" if len(fonts.lacking) > 12 else "")
    chinese = any("\u2e80" <= letter <= "\u9fff" or letter >= "\U00020000" for letter in fonts.lacking)
    package = "fonts-wqy-zenhei" if chinese else "fonts-noto-core"
    return (
        f"no font of this machine has {shown}, so codes stand for these letters in the picture; install one (Debian: "
        f"apt install {package}), or name a font file with --font or {VARIABLE}; a .html page uses your browser's fonts"
    )


def covers(face: Face, letter: str) -> bool:
    """Whether a font draws a letter as something else than what it draws for letters it does not have."""
    return _ink(face, letter) not in [_ink(face, nothing) for nothing in _NOWHERE]


@cache
def _ink(face: Face, letter: str) -> tuple[tuple[int, ...], bytes]:
    try:
        mask = _font(face, _SIZE).getmask(letter, mode="L")
        return tuple(mask.size), bytes(mask)
    except (OSError, ValueError):
        return (), b""


@cache
def _font(face: Face, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    name, number = face
    return ImageFont.truetype(name, size, index=number) if name else ImageFont.load_default(size)


def _opens(face: Face) -> bool:
    try:
        _font(face, _SIZE)
    except (OSError, ValueError):
        return False
    return True


def _given(path: Path) -> Face:
    face = (str(path.expanduser()), 0)
    if not _opens(face):
        state = "is no font that can be read" if path.expanduser().is_file() else "does not exist"
        raise UserError(f"the font {str(path)!r} {state}; give a .ttf, .otf or .ttc file")
    return face


def _still_missing(letters: Sequence[str], faces: Sequence[Face]) -> list[str]:
    return [letter for letter in letters if not any(covers(face, letter) for face in faces)]


@cache
def _fontconfig(letter: str) -> tuple[Face, ...]:
    """Fonts of the system that say that they have a letter, regular ones first; none without fontconfig."""
    ask = ["fc-list", f":charset={ord(letter):x}", "--format", "%{style}\t%{file}\t%{index}\n"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.split("\t") for line in answer.splitlines() if line.count("\t") == 2]
    rows.sort(key=lambda row: ("Regular" not in row[0], "Sans" not in row[1], row[1:]))
    # Beyond 16 bits, the number says which instance of a variable font is meant.
    faces = ((file, int(number) & 0xFFFF) for _, file, number in rows if number.isdigit())
    return tuple(face for face in faces if _opens(face))


def _undrawn(letter: str) -> bool:
    return unicodedata.category(letter) in _UNDRAWN


def _pieces(text: str) -> Iterator[str]:
    """Where a line may break: behind blanks, and between letters of writing without any."""
    word = ""
    for letter in text:
        word += letter
        if letter.isspace() or unicodedata.east_asian_width(letter) in "WF":
            yield word
            word = ""
    if word:
        yield word
