"""An explanation as a file: a picture, a page or numbers; and as a table for the terminal."""

import json
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from unicl.errors import UserError, suggest
from unicl.use.explain.fonts import advice, find_fonts
from unicl.use.explain.heat import Scale
from unicl.use.explain.run import Explanation
from unicl.use.explain.view import facts, number, sought, title
from unicl.use.files import printable

ENDINGS: Final = (".html", ".htm", ".png", ".json")
_DIGITS: Final = 6


def require_ending(path: Path) -> str:
    """The ending of an output that `write` knows; raises `UserError` for another, best before any work is done."""
    ending = path.suffix.casefold()
    if ending not in ENDINGS:
        raise UserError(
            f"--out {str(path)!r} ends on {repr(ending) if ending else 'nothing'}, which says no format"
            f"{suggest(ending, ENDINGS)}; "
            f"end it on one of {', '.join(ENDINGS)}"
        )
    return ending


def write(explanation: Explanation, path: Path, *, scale: Scale = "joint", font: Path | None = None) -> str:
    """Write a sheet (.png), a page (.html) or the numbers (.json); returns what is to be said about it, or "".

    Raises `UserError` for another ending, a font that is none, or a place that cannot be written.
    """
    ending, said = require_ending(path), ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".json":
            path.write_text(to_json(explanation), encoding="utf-8")
        elif ending == ".png":
            from unicl.use.explain.picture import all_texts, draw

            fonts = find_fonts(all_texts(explanation), given=font)
            said = advice(fonts)
            draw(explanation, fonts=fonts, scale=scale).save(path)
        else:
            from unicl.use.explain.page import page

            path.write_text(page(explanation, scale=scale), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}", code=1) from error
    return said


def to_json(explanation: Explanation) -> str:
    """All numbers as one JSON object; heat row by row, ``area`` in pixels of the picture."""
    area, index = explanation.area, explanation.index
    words = [
        {"word": word, "score": round(explanation.scores[place], _DIGITS), "heat": _rows(explanation.heat[place])}
        for place, word in enumerate(explanation.words)
    ]
    content = {
        "model": explanation.model,
        "image": explanation.image,
        "text": explanation.text,
        "method": explanation.method,
        "score": round(explanation.score, _DIGITS),
        "area": {side: round(getattr(area, side), 2) for side in ("left", "top", "right", "bottom")},
        "whole": _rows(explanation.whole),
        "words": words,
        "index": None
        if index is None
        else {"parts": index.parts, "best": index.best.tolist(), "label": index.label, "wanted": index.wanted},
        "notes": explanation.notes,
    }
    return printable(json.dumps(content, ensure_ascii=False)) + "\n"


def show(explanation: Explanation, console: Console) -> None:
    """Print each word with its score and its best place, then what was compared."""
    table = Table(box=None, pad_edge=False)
    table.add_column("word", overflow="fold")
    table.add_column("score", justify="right")
    table.add_column("best place", style="dim")
    for place, word in enumerate(explanation.words):
        table.add_row(Text(word), number(explanation.scores[place]), _place(explanation, place))
    console.print(Text(title(explanation), style="bold"))
    console.print(table)
    if explanation.index is not None:
        hits = explanation.index.hits
        said = f"{int(hits.sum())} of {hits.numel()} places show {sought(explanation.index)}"
        console.print(Text(said, style="dim"))
    for line in (*facts(explanation), *(f"note: {note}" for note in explanation.notes)):
        console.print(Text(line, style="dim"))


def _place(explanation: Explanation, word: int) -> str:
    if float(explanation.heat[word].max()) <= float(explanation.heat[word].min()):
        return "none: the same everywhere"
    row, column = explanation.peak(word)
    x, y = explanation.point(row, column)
    return f"row {row + 1}, column {column + 1} (pixel {x:.0f}, {y:.0f})"


def _rows(heat: Tensor) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in row] for row in heat.tolist()]
