"""A contact sheet of results: what was asked on top, then pictures with bars; as an HTML page or a PNG."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
from PIL import Image

from unicl.data.image import decode
from unicl.errors import BadImage, UserError, suggest
from unicl.space import ImageSource
from unicl.use.classify import Classes
from unicl.use.files import printable
from unicl.use.query import Term
from unicl.use.results import Results, json_lines, summary
from unicl.use.search import Found, Hit

ENDINGS = (".html", ".htm", ".png", ".jsonl")
SIDE = 360
QUALITY = 82
SHOWN = 3
"""Classes that a tile of a classified picture shows."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the question: a sign ("", "+" or "−"), and a text, or a picture with its name."""

    sign: str
    text: str
    image: ImageSource | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """A number with its name ("" for none), and the ``share`` of the full length that it fills, 0 to 1."""

    name: str
    words: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One picture of a sheet; ``rank`` is None where the order says nothing."""

    id: str
    name: str
    image: ImageSource | None
    bars: tuple[Bar, ...]
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """All that a contact sheet shows, whatever draws it."""

    title: str
    parts: tuple[Part, ...]
    note: str
    tiles: tuple[Tile, ...]


def sheet(results: Results) -> Sheet:
    """The contact sheet of a search or of a classification.

    Bars of scores are relative to the best hit, since a cosine of .3 is much for a text; those of classes are not.
    """
    return _of_search(results) if isinstance(results, Found) else _of_classes(results)


def write(results: Results, path: Path) -> None:
    """Write results to a file: a contact sheet (.html, .png) or lines of JSON (.jsonl).

    Raises `UserError` for another ending or a place that cannot be written.
    """
    ending = require_ending(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".jsonl":
            path.write_text(json_lines(results), encoding="utf-8")
        elif ending == ".png":
            from unicl.use.png import draw

            draw(sheet(results)).save(path, optimize=True)
        else:
            path.write_text(page(sheet(results)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}", code=1) from error


def require_ending(path: Path) -> str:
    """The ending of an output that `write` knows; raises `UserError` for another, best before any work is done."""
    ending = path.suffix.casefold()
    if ending not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise UserError(
            f"--out {str(path)!r} ends on {ending or 'nothing'!r}, which says no format{suggest(ending, ENDINGS)}; "
            f"end it on one of {known}"
        )
    return ending


def page(sheet: Sheet) -> str:
    """The sheet as one HTML page that needs nothing else: pictures and styles are inside."""
    loader = jinja2.FunctionLoader(lambda name: (files("unicl.use") / "pages" / name).read_text(encoding="utf-8"))
    rules = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rules.filters["inline"] = _inline
    return printable(rules.get_template("sheet.html").render(sheet=sheet))


def thumbnail(image: ImageSource | None, *, side: int = SIDE) -> Image.Image | None:
    """The picture with its longer side at most ``side``; None if there is none or it cannot be read any more."""
    if image is None:
        return None
    try:
        pixels = decode(image)
    except (BadImage, OSError):
        return None
    small = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    small.thumbnail((side, side))
    return small


def _inline(image: ImageSource | None) -> str:
    small = thumbnail(image)
    if small is None:
        return ""
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _of_search(found: Found) -> Sheet:
    best = max((hit.score for hit in found.hits), default=0.0)
    tiles = tuple(
        Tile(
            id=hit.id,
            name=_name(hit.id),
            image=hit.image,
            rank=hit.rank,
            bars=(Bar("", f"{hit.score:.3f}", max(0.0, hit.score) / best if best > 0 else 0.0), *_cosine(found, hit)),
        )
        for hit in found.hits
    )
    title = str(found.query)
    return Sheet(title=title, parts=_parts(found.query.terms), note=summary(found), tiles=tiles)


def _cosine(found: Found, hit: Hit) -> tuple[Bar, ...]:
    """The first step's score, if another one ranks the hits."""
    if not found.compared:
        return ()
    best = max(each.cosine for each in found.hits)
    return (Bar("cosine", f"{hit.cosine:.3f}", max(0.0, hit.cosine) / best if best > 0 else 0.0),)


def _of_classes(classes: Classes) -> Sheet:
    tiles = tuple(
        Tile(
            id=row.id,
            name=_name(row.id),
            image=row.image,
            bars=tuple(Bar(name, f"{share:.1%}", share) for name, share in row.answers[:SHOWN]),
        )
        for row in classes.rows
    )
    title = ", ".join(classes.names)
    return Sheet(title=title, parts=(Part("", title),), note=summary(classes), tiles=tiles)


def _parts(terms: Sequence[Term]) -> tuple[Part, ...]:
    parts = []
    for number, term in enumerate(terms):
        sign = "−" if term.weight < 0 else "+" if number else ""
        times = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} × "
        path = term.what.expanduser() if isinstance(term.what, Path) else None
        name = path.name if path is not None else str(term.what)
        parts.append(Part(sign, printable(times + name), path))
    return tuple(parts)


def _name(id: str) -> str:
    return id.rpartition("/")[2] or id
