"""A comparison of two columns without their vectors: who holds what, and how hard each pair is pulled together."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from unicl.objective.peers import Peers
from unicl.objective.targets import By, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How scores are computed; the numbers do not depend on it but for rounding.

    ``rows`` of a tile (None: by the device); ``keep`` bytes of scores are kept for the backward pass; ``exchange`` and
    ``operands`` as in `unicl.train.compute.ComputeSettings`.
    """

    rows: int | None = None
    keep: int = 400 << 20
    exchange: Literal["gather", "ring"] = "gather"
    operands: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """How hard each pair is pulled together: ``T (row count' + count column') + (row" count + count column")``.

    ``rows`` and ``columns`` go with the target, ``row_floor`` and ``column_floor`` with every pair alike (smoothing);
    None is zero. Each is of the rows, or columns, of all processes.
    """

    rows: Tensor
    columns: Tensor | None = None
    row_floor: Tensor | None = None
    column_floor: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A comparison without its vectors: the rows of this process against the columns of all.

    ``target`` is of this process's rows and all columns; ``own`` and ``own_columns`` say where this process's lie.
    ``row_weights``, ``column_weights``: of the logarithms of sums, where a loss has those. ``itself``: a row is not
    compared with the column of its own number. ``learns``: whether anybody may ask for a gradient.
    """

    target: Target
    own: slice
    own_columns: slice
    column_sizes: tuple[int, ...]
    row_counts: Tensor
    column_counts: Tensor
    pull: Pull
    row_weights: Tensor
    column_weights: Tensor | None
    peers: Peers
    tiling: Tiling
    learns: bool
    itself: bool = False


def pull_rows(rows: Tensor, plan: Plan, *, columns: Tensor, place: slice) -> None:
    """Add to ``rows (M, D)`` what the columns of a place, ``(n, D)``, pull: sums over groups, no pair is looked at."""
    pull, texts = plan.pull, plan.target.texts.part(place)
    size = plan.target.groups if plan.target.kernel is None else len(plan.target.kernel.texts)
    sums = columns.new_empty(size, columns.shape[1])
    for row_scale, scale, by in _ways(plan):
        if scale is not None:
            texts.add_to_groups(sums.zero_(), columns, scale=scale[place])
            plan.target.images.add_to_rows(rows, plan.target.met(sums, by=by), scale=row_scale)
    for scales, floor in ((pull.row_floor, plan.column_counts), (plan.row_counts, pull.column_floor)):
        if scales is not None and floor is not None:
            rows.addr_(scales, floor[place] @ columns)
    own = plan.own_columns
    if plan.itself and place.start <= own.start and own.stop <= place.stop:
        rows -= pull.rows[:, None] * columns[own.start - place.start : own.stop - place.start]


def pull_columns(columns: Tensor, plan: Plan, *, rows: Tensor, place: slice) -> None:
    """Take from ``columns (n, D)``, those of a place, what this process's rows pull."""
    pull, texts = plan.pull, plan.target.texts.part(place)
    size = plan.target.groups if plan.target.kernel is None else len(plan.target.kernel.images)
    sums = rows.new_empty(size, rows.shape[1])
    for row_scale, scale, by in _ways(plan):
        if scale is not None:
            plan.target.images.add_to_groups(sums.zero_(), rows, scale=row_scale)
            turned = plan.target.turned().met(sums, by="texts" if by == "images" else "images")
            texts.add_to_rows(columns, turned, scale=-scale[place])
    for floor, scale in ((pull.row_floor, plan.column_counts), (plan.row_counts, pull.column_floor)):
        if floor is not None and scale is not None:
            columns.addr_(scale[place], floor @ rows, alpha=-1)
    own = plan.own_columns
    if plan.itself and place.start <= own.start and own.stop <= place.stop:
        columns[own.start - place.start : own.stop - place.start] += pull.rows[:, None] * rows


def _ways(plan: Plan) -> tuple[tuple[Tensor, Tensor | None, By], ...]:
    """Both directions: the scales of rows and of columns, and in whose softmax the target is read."""
    return (plan.pull.rows, plan.column_counts, "images"), (plan.row_counts, plan.pull.columns, "texts")
