"""Columns of a table that say which findings a row has: present, absent, uncertain, or not mentioned."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Final

from unicl.data.formats.cells import is_missing
from unicl.data.formats.columns import Columns, listed
from unicl.errors import UserError, suggest
from unicl.space import Finding, Findings

PREFIX: Final = "finding:"
"""How a column is called that holds a finding and nothing else, as `unicl label` writes them."""
ALL: Final = "*"
HEAD: Final = 2000
"""How many rows are looked at to see which columns hold findings."""
MEANINGS: Final[Mapping[str, Finding]] = MappingProxyType(
    {
        **dict.fromkeys(("1", "1.0", "present", "positive", "true", "yes"), Finding.PRESENT),
        **dict.fromkeys(("0", "0.0", "absent", "negative", "false", "no"), Finding.ABSENT),
        **dict.fromkeys(("-1", "-1.0", "uncertain", "u"), Finding.UNCERTAIN),
        **dict.fromkeys(("", "nan", "none", "unmentioned"), Finding.UNMENTIONED),
    }
)
"""What a cell may say: CheXpert's numbers, or words."""
Rows = Callable[[tuple[str, ...]], Iterator[tuple[int, Sequence[object]]]]


def finding_columns(
    asked: str | None, *, columns: Sequence[str], others: Columns, rows: Rows, where: str
) -> Mapping[str, str]:
    """The findings of a table by their columns: those that are ``asked`` for, or else columns called ``finding:NAME``.

    "*" are all columns whose cells say nothing else and that are not in use. Raises `UserError` for one that is not
    there, or if "*" finds none.
    """
    if asked is None:
        return {name: name.removeprefix(PREFIX).strip() for name in columns if name.startswith(PREFIX)}
    if asked == "":
        return {}
    if asked == ALL:
        found = _all(columns, others=others, rows=rows, where=where)
    else:
        found = tuple(_named(name.strip(), columns=columns, where=where) for name in asked.split(","))
    return {name: name.removeprefix(PREFIX).strip() for name in found}


class FindingCells:
    """The finding columns of a table, read row by row; equal rows are one object."""

    def __init__(self, columns: Mapping[str, str], *, where: str) -> None:
        self.columns = tuple(columns)
        self.names = tuple(columns.values())
        self.where = where
        self._cache: dict[tuple[object, ...], Findings] = {}

    def __call__(self, cells: Sequence[object], *, place: str) -> Findings:
        """What a row says of each finding; raises `UserError` for a cell that says nothing of the kind."""
        row = tuple(cells)
        known = self._cache.get(row)
        if known is None:
            read = (self._read(cell, column, place=place) for cell, column in zip(row, self.columns, strict=True))
            known = self._cache.setdefault(row, tuple(zip(self.names, read, strict=True)))
        return known

    def _read(self, cell: object, column: str, *, place: str) -> Finding:
        found = finding_of(cell)
        if found is None:
            raise UserError(
                f"{self.where}, {place}: the column {column!r} says {str(cell)[:40]!r} of a finding; wanted is 1 "
                "(present), 0 (absent), -1 (uncertain) or nothing; or name other columns with ?findings=A,B"
            )
        return found


def finding_of(cell: object) -> Finding | None:
    """What a cell says of a finding; None if it says something else."""
    if is_missing(cell):
        return Finding.UNMENTIONED
    return MEANINGS.get(str(cell).strip().casefold())


def _all(columns: Sequence[str], *, others: Columns, rows: Rows, where: str) -> tuple[str, ...]:
    free = tuple(name for name in columns if name not in others.wanted)
    possible = dict.fromkeys(free, False)  # and whether a cell said anything
    for _, cells in islice(rows(free), HEAD):
        for name, cell in zip(free, cells, strict=True):
            if name not in possible:
                continue
            found = finding_of(cell)
            if found is None:
                del possible[name]
            else:
                possible[name] |= found != Finding.UNMENTIONED
    # A column that is empty throughout says nothing of a finding either; only numbered rows look like it.
    found_all = tuple(name for name, said in possible.items() if said or name.startswith(PREFIX))
    if not found_all:
        raise UserError(
            f"{where} has no column of findings among {listed(columns)} (findings=*): wanted are columns whose cells "
            "are 1 (present), 0 (absent), -1 (uncertain) or blank"
        )
    return found_all


def _named(name: str, *, columns: Sequence[str], where: str) -> str:
    for column in (name, PREFIX + name):
        if column in columns:
            return column
    near = suggest(name, [column.removeprefix(PREFIX) for column in columns])
    raise UserError(f"{where} has no column for the finding {name!r}{near}; it has {listed(columns)}")
