"""Plots of a report as SVG to be put into a page, in the page's own colours and fonts."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from unicl.evaluate.report import ClassScore, Confused, Result

INK, SOFT, LINE, FIRST, SECOND = "#010203", "#010204", "#010205", "#3d6fb4", "#c98a1b"
"""The first three stand for colours of the page, which differ by day and night."""
THEMED = ((INK, "var(--ink)"), (SOFT, "var(--soft)"), (LINE, "var(--line)"), (FIRST, "var(--bar)"))
BARS = 40
CELLS = 40
RANK_BINS = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, 200), (201, 500), (501, 1000))


def confusion_plot(result: Result) -> str:
    """A square of true against predicted classes, each row in shares; many classes are shown by the most confused."""
    names = _confusing(result)
    table = _table(result.confusion, names)
    side = min(2.6 + 0.22 * len(names), 9.5)

    def draw(axes: Axes) -> None:
        shade = LinearSegmentedColormap.from_list("shade", [(0.24, 0.44, 0.71, 0.0), (0.24, 0.44, 0.71, 1.0)])
        axes.imshow(table / np.maximum(table.sum(1, keepdims=True), 1), cmap=shade, vmin=0, vmax=1, aspect="equal")
        axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        _count_cells(axes, table)

    return svg(draw, width=side, height=side, name=f"confusion of {result.task}")


def rank_plot(result: Result) -> str:
    """How many queries of each direction find their first right answer at which rank."""
    worst = max((max(ranks) for ranks in result.ranks.values() if ranks), default=1)
    bins = [(low, high) for low, high in RANK_BINS if low <= worst]
    if worst > RANK_BINS[-1][1]:
        bins.append((RANK_BINS[-1][1] + 1, worst))

    def draw(axes: Axes) -> None:
        for place, ((direction, ranks), colour) in enumerate(zip(result.ranks.items(), (FIRST, SECOND), strict=False)):
            shares = [100 * sum(low <= rank <= high for rank in ranks) / max(len(ranks), 1) for low, high in bins]
            axes.bar(np.arange(len(bins)) + 0.4 * place - 0.2, shares, width=0.38, color=colour, label=direction)
        axes.set_xticks(range(len(bins)), [str(low) if low == high else f"{low}–{high}" for low, high in bins])
        axes.set_xlabel("rank of the best right answer")
        axes.set_ylabel("queries, %")
        axes.legend(frameon=False)

    return svg(draw, width=7.6, height=3.0, name="ranks")


def class_plot(result: Result) -> str:
    """Accuracy of each class with its interval, the weakest first; of many classes the weakest only."""
    ordered = sorted(result.classes, key=lambda one: (one.value, one.name))[:BARS]

    def draw(axes: Axes) -> None:
        values = np.array([100 * one.value for one in ordered])
        ends = np.array([_reach(one) for one in ordered]).T
        places = np.arange(len(ordered))
        axes.barh(places, values, height=0.68, color=FIRST)
        axes.errorbar(values, places, xerr=ends, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
        axes.set_yticks(places, [f"{_short(one.name)} ({one.n:,})" for one in ordered])
        axes.set_ylim(len(ordered) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy, %")

    return svg(draw, width=7.6, height=0.9 + 0.22 * len(ordered), name=f"classes of {result.task}")


def _confusing(result: Result) -> list[str]:
    names = list(dict.fromkeys(one.name for one in result.classes))
    for one in result.confusion:
        if one.predicted not in names:
            names.append(one.predicted)
    if len(names) <= CELLS:
        return names
    weight = dict.fromkeys(names, 0)
    for one in result.confusion:
        if one.true != one.predicted:
            weight[one.true] += one.count
            weight[one.predicted] += one.count
    chosen = set(sorted(names, key=lambda name: -weight[name])[:CELLS])
    return [name for name in names if name in chosen]


def _table(confusion: Sequence[Confused], names: Sequence[str]) -> NDArray[np.float64]:
    place = {name: row for row, name in enumerate(names)}
    table = np.zeros((len(names), len(names)))
    for one in confusion:
        if one.true in place and one.predicted in place:
            table[place[one.true], place[one.predicted]] += one.count
    return table


def _count_cells(axes: Axes, table: NDArray[np.float64]) -> None:
    if len(table) > 20:
        return
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    for row, column in np.argwhere(table > 0):
        colour = "#ffffff" if shares[row, column] > 0.55 else INK
        axes.text(column, row, f"{table[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)


def _reach(one: ClassScore) -> tuple[float, float]:
    return 100 * max(one.value - one.low, 0), 100 * max(one.high - one.value, 0)


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def svg(draw: Callable[[Axes], None], *, width: float, height: float, name: str) -> str:
    """What ``draw`` draws, ``width`` by ``height`` inches, as an element of a page; ``name`` says what it shows."""
    with _style(salt=name):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        file = io.StringIO()
        with warnings.catch_warnings():
            # The page's fonts write the text, so it does not matter which signs matplotlib's own can draw.
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(file, format="svg", metadata={"Date": None})
    return _for_page(file.getvalue(), name=name)


def _style(*, salt: str) -> AbstractContextManager[None]:
    return rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": salt,
            "text.parse_math": False,  # a dollar sign in a class name is a dollar sign
            "text.color": INK,
            "font.size": 9.0,
            "axes.labelcolor": SOFT,
            "axes.edgecolor": LINE,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": SOFT,
            "ytick.color": SOFT,
        }
    )


def _for_page(text: str, *, name: str) -> str:
    """Without what would reach beyond the plot: its style sheet, its ids, its fonts and its colours."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    for colour, variable in THEMED:
        text = text.replace(colour, variable)
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    prefix = re.sub(r"\W+", "-", name)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
