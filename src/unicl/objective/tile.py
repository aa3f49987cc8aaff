"""One tile of scores: made, exponentiated, weighted. All that a blockwise loss does to ``(t, n)`` numbers at once.

Scores whose exponentials fit into float32 side by side need one exponential each, shared by both directions; others
(a scale of 100 with cosines from -1 to 1) need one a direction, each from its own maximum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

REACH: Final = 40.0
"""Exponentials of scores this far from 0 and sums of millions of them are ordinary float32 numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """``values (t, n)``: the exponentials of scores minus ``middle``, or, if that is None, the scores themselves."""

    values: Tensor
    middle: float | None


def product(left: Tensor, right: Tensor, *, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
    """``scale * left @ right``; bfloat16 factors are multiplied exactly and summed in float32."""
    if left.dtype == torch.bfloat16 and left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32).mul_(scale)
    if left.dtype == torch.bfloat16:
        left, right = left.float(), right.float()
    out = left.new_empty(len(left), right.shape[1]) if out is None else out
    return torch.addmm(out, left, right, beta=0, alpha=scale, out=out)


def exponentials(scores: Tensor, *, bound: float, itself: tuple[Tensor, Tensor] | None) -> Tile:
    """The tile of scores that are at most ``bound`` in size; works in place. ``itself`` are places to leave out."""
    middle: float | None = 0.0
    if bound > REACH:
        middle = _middle(scores) if scores.device.type == "cpu" and scores.numel() else None
    if middle is not None:
        (scores if middle == 0 else scores.sub_(middle)).exp_()
    if itself is not None:
        scores[itself] = -torch.inf if middle is None else 0.0
    return Tile(values=scores, middle=middle)


def log_sums(tile: Tile, row_counts: Tensor, column_counts: Tensor, *, both: bool) -> tuple[Tensor, Tensor | None]:
    """The logarithms of the counted sums of exponentials: of each row ``(t,)`` and, with ``both``, column ``(n,)``."""
    if tile.middle is None:
        row_counts, column_counts = row_counts.log(), column_counts.log()
        sums = _fast(_far_sums if both else _far_row_sums, tile.values.device)
        far: tuple[Tensor, Tensor | None] = sums(tile.values, row_counts, column_counts)
        return far
    rows = (tile.values @ column_counts).log_().add_(tile.middle)
    return rows, (row_counts @ tile.values).log_().add_(tile.middle) if both else None


def weighted(tile: Tile, rows: Tensor, columns: Tensor | None, *, spare: Tensor) -> Tensor:
    """``exp(score + rows) + exp(score + columns)``: how hard each pair is pushed apart; works in place.

    ``rows (t,)`` and ``columns (n,)`` are logarithms: of the weight over the sum of exponentials, hence never large.
    """
    values = tile.values
    if tile.middle is None and columns is not None and values.device.type == "cuda":
        pushed: Tensor = _fast(_far_push, values.device)(values, rows, columns)
        return pushed
    if tile.middle is None:
        torch.add(values, rows[:, None], out=spare).exp_()
        return spare if columns is None else values.add_(columns).exp_().add_(spare)
    first = (rows + tile.middle).exp_()[:, None]
    if columns is None:
        return values.mul_(first)
    torch.add(first, (columns + tile.middle).exp_(), out=spare)
    return values.mul_(spare)


def _far_sums(values: Tensor, row_counts: Tensor, column_counts: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.logsumexp(values + column_counts, dim=1)
    return rows, torch.logsumexp(values + row_counts[:, None], dim=0)


def _far_row_sums(values: Tensor, row_counts: Tensor, column_counts: Tensor) -> tuple[Tensor, None]:
    del row_counts
    return torch.logsumexp(values + column_counts, dim=1), None


def _far_push(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return (values + rows[:, None]).exp() + (values + columns).exp()


def _fast(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function in one pass over its numbers on a GPU, by torch.compile; as it is elsewhere."""
    return Fused(function) if device.type == "cuda" else function


@dataclass(frozen=True, slots=True)
class Fused:
    """A function that torch.compile makes one kernel of; as it is where there is no compiler."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Tensor) -> Any:
        compiled = _compiled(self.function)
        try:
            return compiled(*arguments)
        except (RuntimeError, ImportError, OSError) as error:
            if "out of memory" in str(error):
                raise
            return self.function(*arguments)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    made: Callable[..., Any] = torch.compile(function, dynamic=True)
    return made


def _middle(scores: Tensor) -> float | None:
    low, high = (float(each) for each in scores.aminmax())
    return (low + high) / 2 if high - low <= 2 * REACH else None
