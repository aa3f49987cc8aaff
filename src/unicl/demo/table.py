"""The demo's table: mean and deviation over seeds, every column shown, the best of each marked."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Self

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A number over seeds: its mean and standard deviation (0 for one seed)."""

    mean: float
    deviation: float
    best: bool = False

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.deviation:.3f}".replace("0.", ".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Every column of every system."""

    systems: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    seeds: int

    @classmethod
    def of(cls, scores: Mapping[tuple[str, int], Mapping[str, float]]) -> Self:
        """From the scores of each system and seed."""
        systems = tuple(dict.fromkeys(name for name, _ in scores))
        columns = tuple(next(iter(scores.values())))
        cells: dict[tuple[str, str], Cell] = {}
        for column in columns:
            values = {name: [s[column] for (n, _), s in scores.items() if n == name] for name in systems}
            top = max(fmean(each) for each in values.values())
            for name, each in values.items():
                deviation = stdev(each) if len(each) > 1 else 0.0
                cells[name, column] = Cell(mean=fmean(each), deviation=deviation, best=fmean(each) == top)
        return cls(systems=systems, columns=columns, cells=cells, seeds=len(scores) // len(systems))

    def plain(self) -> dict[str, Any]:
        """As JSON would have it."""
        return {
            "seeds": self.seeds,
            "systems": {
                name: {c: [self.cells[name, c].mean, self.cells[name, c].deviation] for c in self.columns}
                for name in self.systems
            },
        }


def show(results: Results, console: Console) -> None:
    """Print one row a column of the results, one column a system, so that all fits on a narrow terminal."""
    table = Table(title=f"Emoji of an artist never seen, {results.seeds} seeds", box=None, header_style="bold")
    table.add_column("")
    for name in results.systems:
        table.add_column(name, justify="right")
    for column in results.columns:
        cells = [results.cells[name, column] for name in results.systems]
        table.add_row(column, *(f"[bold green]{cell}[/]" if cell.best else str(cell) for cell in cells))
    console.print(table)
    console.print("seen: things that training showed by another artist; unseen: things it never showed; best in bold")
