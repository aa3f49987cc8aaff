"""Ways in which a checkpoint can be wrong by one entry, for the tests of every layout."""

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from unicl.errors import UserError
from unicl.towers.weights.checkpoint import Checkpoint


def wrong_by_one(
    found: Checkpoint, read: Callable[[Checkpoint], object], *, spared: str = "(?!)", alike: str = r"\d+"
) -> tuple[int, list[str]]:
    """How many checkpoints with one entry renamed, missing or reshaped were tried, and the wrong answers.

    One entry of each kind is taken, names that differ by what ``alike`` matches being of a kind. A refusal must be a
    `UserError` that names the entry; one of another shape may also be named by what it no longer fits. ``spared``:
    entries that may be anything.
    """
    kinds = {re.sub(alike, "0", name): name for name in reversed(found.state) if not re.fullmatch(spared, name)}
    wrong = []
    cases = [case for place, name in enumerate(kinds.values()) for case in _cases(name, found.state[name], place)]
    for name, case, value in cases:
        rest = {key: other for key, other in found.state.items() if key != name}
        names = found.state if case == "reshaped" else [name]
        said = _said(replace(found, state=rest | value), read)
        if said is None or not any(key in said for key in names):
            wrong.append(f"{case} {name}: {said}")
    return len(cases), wrong


def _cases(name: str, value: Tensor, place: int) -> list[tuple[str, str, dict[str, Tensor]]]:
    """One fault an entry, the three kinds in turns."""
    wider = torch.cat([value, value[..., :1]], dim=-1) if value.ndim else torch.zeros(2)
    faults = [("reshaped", {name: wider}), ("missing", {}), ("renamed", {f"{name}_x": value})]
    return [(name, *faults[place % len(faults)])]


def _said(found: Checkpoint, read: Callable[[Checkpoint], object]) -> str | None:
    try:
        read(found)
    except UserError as error:
        return str(error)
    return None
