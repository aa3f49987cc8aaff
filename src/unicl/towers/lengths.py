"""Texts of a batch in groups of like length, so that one long text does not make all others as long."""

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

GROUPS: Final = 8
LEAST_ROWS: Final = 32
WORTH: Final = 0.8
LEAST_SAVED: Final = 0.02
"""From `LEAST_ROWS` texts on, they are read in at most `GROUPS` by length, if that leaves less than `WORTH` of the
work; a further group has to save `LEAST_SAVED` of what is left."""


def length_groups(mask: Tensor) -> tuple[Tensor, list[tuple[Tensor | slice, int]]]:
    """Rows by length, and the groups of them that are read together, each with its length.

    One long text makes all others of a batch as long; groups of like length give the same numbers with less work.
    """
    rows, longest = mask.shape
    lengths = mask.sum(1).cpu()
    order = lengths.argsort(stable=True)
    bounds = _bounds(lengths[order]) if rows >= LEAST_ROWS else [0, rows]
    groups = [(order[a:b], max(int(lengths[order[b - 1]]), 1)) for a, b in pairwise(bounds)]
    if rows < LEAST_ROWS or sum(len(part) * length for part, length in groups) > WORTH * rows * longest:
        return order, [(slice(None), longest)]
    return order.to(mask.device), [(part.to(mask.device), length) for part, length in groups]


def _bounds(lengths: Tensor) -> list[int]:
    """Where to cut rows of rising length, cut by cut where it saves the most tokens."""
    bounds, work = [0, len(lengths)], len(lengths) * int(lengths[-1])
    while len(bounds) <= GROUPS:
        saved, place = max(_best_cut(lengths, a, b) for a, b in pairwise(bounds))
        if saved < max(LEAST_SAVED * work, 1):
            break
        bounds, work = sorted([*bounds, place]), work - saved
    return bounds


def _best_cut(lengths: Tensor, first: int, end: int) -> tuple[int, int]:
    """The tokens that one cut of a group saves at most, and its place."""
    saved = torch.arange(1, end - first) * (lengths[end - 1] - lengths[first : end - 1])
    return (int(saved.max()), first + 1 + int(saved.argmax())) if len(saved) else (0, first)
