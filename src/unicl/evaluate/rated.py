"""Pairs that people rated: CxC's tables of texts (STS), of images (SIS) and of texts with images (SITS)."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from unicl.data.formats.rows import Table
from unicl.errors import UserError
from unicl.evaluate.naming import Finder, open_table, plain_columns, read_text_ids, wrong_columns
from unicl.space import Sample

Kind = Literal["sts", "sis", "sits"]
Side = Literal["image", "caption", "text", "id"]
"""What a column holds: images, captions of the data by id or as they are, any texts, or ids of either."""

STEMS: tuple[tuple[str, Side], ...] = (
    *(("caption", "caption"), ("text", "text"), ("sentence", "text"), ("sent", "text")),
    *(("image", "image"), ("img", "image"), ("file", "image"), ("filename", "image"), ("photo", "image"), ("id", "id")),
)
SCORES = ("aggscore", "score", "rating", "meanscore", "meanrating", "similarity", "gold")
POSITIVE: Mapping[Kind, float] = {"sts": 3.0, "sits": 3.0, "sis": 2.5}
"""The rating, of 0 to 5, from which on CxC takes a pair for right in retrieval."""
WANTED = (
    "two of what was compared (caption1 and caption2, image1 and image2, caption and image, text1 and text2, or id1 "
    "and id2) and the mean rating (agg_score, score or rating)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """One table: N pairs as it names them, what its two columns hold, and ``ratings (N,)`` float64."""

    name: str
    sides: tuple[Side, Side]
    first: tuple[str, ...]
    second: tuple[str, ...]
    ratings: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """All tables of an evaluation; ``texts`` are those that ids name.

    ``positive`` is the rating from which on a pair is right in retrieval, None for CxC's own (`POSITIVE`).
    """

    tables: tuple[Rated, ...]
    texts: Mapping[str, str]
    positive: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """A table's N pairs in the data: images by the ids of their samples, texts as they are.

    ``images`` says which of the two sides are images; ``ratings (N,)`` float64.
    """

    name: str
    images: tuple[bool, bool]
    first: tuple[str, ...]
    second: tuple[str, ...]
    ratings: Tensor

    @property
    def kind(self) -> Kind:
        """STS of texts, SIS of images, SITS of both."""
        return "sis" if all(self.images) else "sits" if any(self.images) else "sts"

    def among(self, ids: Collection[str]) -> Self:
        """The pairs whose images are among the ids."""
        sides = [side for side, image in zip((self.first, self.second), self.images, strict=True) if image]
        kept = [row for row in range(len(self.first)) if all(side[row] in ids for side in sides)]
        return replace(
            self,
            first=tuple(self.first[row] for row in kept),
            second=tuple(self.second[row] for row in kept),
            ratings=self.ratings[torch.tensor(kept, dtype=torch.int64)],
        )


def read_ratings(paths: Sequence[Path], *, data: Sequence[str] = (), positive: float | None = None) -> Ratings:
    """Tables of rated pairs, and the texts that the ids of the sources ``data`` name.

    Raises `UserError` for columns that cannot be meant, a rating that is no number and fewer than two pairs.
    """
    return Ratings(tables=tuple(_read(path) for path in paths), texts=read_text_ids(data), positive=positive)


def read_rated(table: Table, *, name: str) -> Rated:
    """One table of rated pairs, as `read_ratings`."""
    columns = plain_columns(table)
    score = next((columns[plain] for plain in SCORES if plain in columns), None)
    pair = _pair(columns)
    if pair is None or score is None:
        raise wrong_columns(table, wanted=WANTED)
    (first, left), (second, right) = pair
    rows = [(_cell(a), _cell(b), _rating(r, table, n)) for n, (a, b, r) in table.rows((first, second, score))]
    if len(rows) < 2:
        raise UserError(f"{table.where} holds {len(rows)} rated pairs; a correlation needs two at least")
    ratings = torch.tensor([row[2] for row in rows], dtype=torch.float64)
    return Rated(
        name=name,
        sides=(left, right),
        first=tuple(row[0] for row in rows),
        second=tuple(row[1] for row in rows),
        ratings=ratings,
    )


def graded(ratings: Ratings, samples: Sequence[Sample]) -> tuple[Graded, ...]:
    """The pairs of all tables among the samples; raises `UserError` for names that are not in the data."""
    find = Finder(samples, ratings.texts)
    return tuple(_graded(table, find) for table in ratings.tables)


def positives(tables: Sequence[Graded], kind: Kind, *, positive: float | None) -> list[tuple[str, str]]:
    """The pairs of a kind that are right in retrieval, as they stand; of texts with images, the image first."""
    floor = POSITIVE[kind] if positive is None else positive
    return [
        (b, a) if table.images == (False, True) else (a, b)
        for table in tables
        if table.kind == kind
        for a, b, rating in zip(table.first, table.second, table.ratings.tolist(), strict=True)
        if rating >= floor
    ]


def _read(path: Path) -> Rated:
    return read_rated(open_table(path), name=path.name)


def _pair(columns: dict[str, str]) -> tuple[tuple[str, Side], tuple[str, Side]] | None:
    """The two columns of what was compared, in the order of the table."""
    for stem, side in STEMS:
        if f"{stem}1" in columns and f"{stem}2" in columns:
            return (columns[f"{stem}1"], side), (columns[f"{stem}2"], side)
    sides = dict(STEMS)
    named = [(name, sides[plain]) for plain, name in reversed(columns.items()) if plain in sides]
    kinds = {side == "image" for _, side in named}
    return (named[0], named[1]) if len(named) == 2 and kinds == {True, False} else None


def _graded(table: Rated, find: Finder) -> Graded:
    sides = [_seen(names, side, find) for names, side in zip((table.first, table.second), table.sides, strict=True)]
    left, right = (
        find.texts(names, where=table.name, any_text=side == "text")
        if side in ("text", "caption")
        else find.images(names, where=table.name)
        for names, side in zip((table.first, table.second), sides, strict=True)
    )
    images = (sides[0] == "image", sides[1] == "image")
    return Graded(name=table.name, images=images, first=left, second=right, ratings=table.ratings)


def _seen(names: Sequence[str], side: Side, find: Finder) -> Side:
    if side != "id":
        return side
    return "image" if all(find.is_image(name) for name in names) else "caption"


def _cell(cell: object) -> str:
    return str(cell).strip()


def _rating(cell: object, table: Table, number: int) -> float:
    try:
        value = float(str(cell))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{table.where}, {table.unit} {number:,}: the rating {cell!r} is no number")
    return value
