"""What was counted of concepts as a table, as files for other programs, and as a page with plots."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from unicl.errors import UserError
from unicl.evaluate.plots import FIRST, SECOND, svg
from unicl.use.concepts import LEAST, Concept, Counted
from unicl.use.files import printable

FILES: Final = ("concepts.csv", "concepts.json", "concepts.html")
HEADERS: Final = ("images", "texts", "concepts", "each", "words", "phrases", "bare")
BARS: Final = 40
POINTS: Final = 600
SHOWN: Final = 12
COLOURS: Final = (FIRST, SECOND, "#4f9d69", "#b5548c", "#7a6fc9", "#8a8f98")


def show(counted: Sequence[Counted], *, console: Console, least: int = LEAST) -> None:
    """Print a row for each source, and the concepts on most images."""
    table = Table("source", *HEADERS, box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in counted:
        table.add_row(escape(printable(one.name)), *_cells(one))
    console.print(table)
    most = ", ".join(f"{concept.name} {_size(concept, counted[-1]):,}" for concept in counted[-1].concepts[:SHOWN])
    console.print(Text(printable(f"most: {most or 'no noun is seen often enough'}")))
    for note in notes(counted, least=least):
        console.print(Text(note, style="dim"))


def notes(counted: Sequence[Counted], *, least: int) -> list[str]:
    """What the numbers mean, in sentences."""
    whole = counted[-1]
    found = [
        f"concepts: classes, and nouns that captions show {least:,} times or more; each: images divided by "
        "concepts; bare: captions that name no concept"
    ]
    if whole.unread:
        found.append(f"captions neither in Latin letters nor in Chinese, which were not read: {whole.unread:,}")
    return found


def save(counted: Sequence[Counted], folder: Path, *, least: int = LEAST) -> None:
    """Write `FILES` into a folder; raises `UserError` if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_csv(counted, folder / FILES[0])
        content = {"least": least, "sources": [_facts(one) for one in counted]}
        (folder / FILES[1]).write_text(printable(json.dumps(content, ensure_ascii=False, indent=1)) + "\n", "utf-8")
        (folder / FILES[2]).write_text(page(counted, least=least), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {str(folder)!r}: {error.strerror or error}; give another --out") from error


def page(counted: Sequence[Counted], *, least: int = LEAST) -> str:
    """The page: a table of the sources, images of each concept by rank, and the most frequent concepts."""
    loader = jinja2.FunctionLoader(lambda name: (files("unicl.use") / "pages" / name).read_text(encoding="utf-8"))
    rules = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = rules.get_template("concepts.html").render(
        counted=counted,
        notes=notes(counted, least=least),
        unit=_unit(counted[-1]),
        ranks=rank_plot(counted),
        bars=most_plot(counted[-1]) if counted[-1].concepts else "",
        headers=HEADERS,
        cells=_cells,
        all=FILES[0],
    )
    return printable(text)


def rank_plot(counted: Sequence[Counted]) -> str:
    """Images of each concept by its rank, both on logarithmic axes: a long tail is a straight line."""

    def draw(axes: Axes) -> None:
        for one, colour in zip(counted, cycle(COLOURS)):
            sizes = np.sort([size for concept in one.concepts if (size := _size(concept, counted[-1]))])[::-1]
            if not len(sizes):
                continue
            places = np.unique(np.geomspace(1, len(sizes), POINTS).round().astype(int)) - 1
            many = len(places) > 1
            axes.plot(places + 1, sizes[places], color=colour, label=printable(one.name), marker="" if many else "o")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,.0f}")
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("concepts by rank")
        axes.set_ylabel(f"{_unit(counted[-1])} of a concept")
        if len(counted) > 1:
            axes.legend(frameon=False)

    return svg(draw, width=7.6, height=3.6, name="concepts by rank")


def most_plot(one: Counted) -> str:
    """The concepts on most images."""
    ordered = one.concepts[:BARS]

    def draw(axes: Axes) -> None:
        axes.barh(np.arange(len(ordered)), [_size(concept, one) for concept in ordered], height=0.68, color=FIRST)
        axes.set_yticks(range(len(ordered)), [printable(concept.name)[:28] for concept in ordered])
        axes.set_ylim(len(ordered) - 0.4, -0.6)
        axes.set_xlabel(_unit(one))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return svg(draw, width=7.6, height=0.9 + 0.22 * len(ordered), name="most frequent concepts")


def _cells(one: Counted) -> list[str]:
    each = f"{one.images_per_concept:,.1f}" if one.images else "–"
    before, behind = (one.images, one.texts, len(one.concepts)), (one.vocabulary, one.phrases, one.bare)
    return [*(f"{n:,}" for n in before), each, *(f"{n:,}" for n in behind)]


def _size(concept: Concept, one: Counted) -> int:
    return concept.images if one.images else concept.seen


def _unit(one: Counted) -> str:
    return "images" if one.images else "mentions"


def _facts(one: Counted) -> dict[str, Any]:
    facts = asdict(one) | {"concepts": len(one.concepts), "images_per_concept": round(one.images_per_concept, 4)}
    return facts | {"most": [asdict(concept) for concept in one.concepts[:BARS]]}


def _write_csv(counted: Sequence[Counted], path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["source", "concept", "kind", "seen", "images"])
        for one in counted:
            lines.writerows([one.name, c.name, c.kind, c.seen, c.images] for c in one.concepts)
