"""A comparison of two columns without their vectors: who holds what, and how hard each pair is pulled together."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from unicl.objective.peers import Peers
from unicl.objective.targets import Target


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
    compared with the column of its own number.
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
    itself: bool = False


class RowPulls:
    """``sum over columns of pull x column`` for each row of this process, by sums over groups: no pair is looked at."""

    def __init__(self, plan: Plan, rows: Tensor) -> None:
        pull = plan.pull
        self.plan = plan
        groups = plan.target.groups if plan.target.kernel is None else len(plan.target.kernel.texts)
        scales = (plan.column_counts, pull.columns)
        self.group_scales = tuple(None if scale is None else scale.to(rows) for scale in scales)
        self.groups = tuple(None if s is None else rows.new_zeros(groups, rows.shape[1]) for s in scales)
        self.floors = (
            None if pull.row_floor is None else rows.new_zeros(rows.shape[1]),
            None if pull.column_floor is None else rows.new_zeros(rows.shape[1]),
        )

    def add(self, place: slice, vectors: Tensor) -> None:
        """Take up a block of columns."""
        plan = self.plan
        texts = plan.target.texts.part(place)
        for sums, scale in zip(self.groups, self.group_scales, strict=True):
            if sums is not None and scale is not None:
                texts.add_to_groups(sums, vectors, scale=scale[place])
        for floor, scale in zip(self.floors, (plan.column_counts, plan.pull.column_floor), strict=True):
            if floor is not None and scale is not None:
                floor += scale[place].to(vectors) @ vectors

    def rows(self, own: Tensor) -> Tensor:
        """``(M, D)``; ``own`` are this process's columns, the partners that `Plan.itself` leaves out."""
        plan, pull = self.plan, self.plan.pull
        result = own.new_zeros(len(plan.row_counts), own.shape[1])
        scales = (pull.rows, plan.row_counts)
        for sums, count in zip(self.groups, scales, strict=True):
            if sums is not None:
                plan.target.images.add_to_rows(result, plan.target.met(sums), scale=count)
        for floor, scale in zip(self.floors, (pull.row_floor, plan.row_counts), strict=True):
            if floor is not None and scale is not None:
                result.addr_(scale, floor)
        return result.sub_(pull.rows[:, None] * own) if plan.itself else result


def pull_columns(columns: Tensor, plan: Plan, *, rows: Tensor, place: slice) -> None:
    """Take ``sum over this process's rows of pull x row`` from ``columns (n, D)``, the columns at a place."""
    pull, texts = plan.pull, plan.target.texts.part(place)
    size = plan.target.groups if plan.target.kernel is None else len(plan.target.kernel.images)
    for row_scale, scale in ((pull.rows, plan.column_counts), (plan.row_counts, pull.columns)):
        if scale is not None:
            sums = rows.new_zeros(size, rows.shape[1])
            plan.target.images.add_to_groups(sums, rows, scale=row_scale)
            texts.add_to_rows(columns, plan.target.turned().met(sums), scale=-scale[place])
    for floor, scale in ((pull.row_floor, plan.column_counts), (plan.row_counts, pull.column_floor)):
        if floor is not None and scale is not None:
            columns.addr_(scale[place], floor @ rows, alpha=-1)
    own = plan.own_columns
    if plan.itself and place.start <= own.start and own.stop <= place.stop:
        columns[own.start - place.start : own.stop - place.start] += pull.rows[:, None] * rows
