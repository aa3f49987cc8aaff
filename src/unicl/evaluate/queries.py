"""Queries of a picture and a text with what they should find, from a table."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unicl.data.formats.rows import Table
from unicl.errors import UserError
from unicl.evaluate.naming import Finder, open_table, plain_columns, wrong_columns
from unicl.space import Sample

SIGNS: Final = {"+": 1, "＋": 1, "plus": 1, "1": 1, "+1": 1, "": 1, "-": -1, "−": -1, "－": -1, "minus": -1, "-1": -1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """Q queries: an image and a target by id, a text, and its sign, +1 or -1."""

    name: str
    images: tuple[str, ...]
    texts: tuple[str, ...]
    signs: tuple[int, ...]
    targets: tuple[tuple[str, ...], ...]


def read_composed(path: Path) -> Composed:
    """A table with the columns image, text, sign and target; rows that differ in their target alone are one query.

    Raises `UserError` for other columns and for a sign that is none.
    """
    return composed_of(open_table(path), name=path.name)


def composed_of(table: Table, *, name: str) -> Composed:
    """The queries of a table, as `read_composed`."""
    columns = plain_columns(table)
    if not {"image", "text", "target"} <= columns.keys():
        raise wrong_columns(table, wanted="image, text, sign (+ or -; all are + without it) and target")
    wanted = tuple(columns[one] for one in ("image", "text", "target", "sign") if one in columns)
    found: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for number, cells in table.rows(wanted):
        image, text, target, *sign = (str(cell).strip() for cell in cells)
        found[image, text, _sign(sign[0] if sign else "+", table, number)].append(target)
    if not found:
        raise UserError(f"{table.where} holds no query; wanted is a row with an image, a text, a sign and a target")
    images, texts, signs = zip(*found, strict=True)
    targets = tuple(tuple(dict.fromkeys(several)) for several in found.values())
    return Composed(name=name, images=images, texts=texts, signs=signs, targets=targets)


def located(composed: Composed, samples: Sequence[Sample]) -> Composed:
    """The same with the ids of the samples; raises `UserError` for images not in the data, and for own targets."""
    find = Finder(samples, {})
    images = find.images(composed.images, where=composed.name)
    flat = iter(find.images([one for several in composed.targets for one in several], where=composed.name))
    targets = tuple(tuple(next(flat) for _ in several) for several in composed.targets)
    own = [image for image, several in zip(images, targets, strict=True) if image in several]
    if own:
        raise UserError(
            f"{composed.name}: {len(own):,} queries have their own image as the target (first: {own[0]!r}), which is "
            "left out of what is searched; name another target"
        )
    return Composed(name=composed.name, images=images, texts=composed.texts, signs=composed.signs, targets=targets)


def _sign(cell: str, table: Table, number: int) -> int:
    if cell.casefold() not in SIGNS:
        raise UserError(f"{table.where}, {table.unit} {number:,}: the sign {cell!r} is neither + nor -")
    return SIGNS[cell.casefold()]
