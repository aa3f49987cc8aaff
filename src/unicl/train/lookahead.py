"""LookAhead: every few steps, weights go back a part of the way they came (Zhang et al. 2019, algorithm 1)."""

from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from unicl.errors import UserError

SLOW: Final = "slow"
COUNT: Final = "looked"
"""The states of a parameter that look-ahead adds to its optimiser's: they are saved and resumed with them."""


def look_ahead(optimiser: Optimizer, *, every: int, share: float) -> None:
    """Let an optimiser look ahead: slow weights go ``share`` of the way after ``every`` steps, and weights begin there.

    Slow weights are states of the optimiser, begun at a parameter's first step; a parameter without a gradient
    stays as it is and is not counted. A share of 1 leaves the optimiser's own steps.

    Raises `UserError` for a number of steps below 1, or a share that is none.
    """
    if every < 1 or not 0 < share <= 1:
        raise UserError(
            f"look-ahead goes a share of (0, 1] of the way every so many steps, not {share:g} every {every}; 0.5 every "
            "5 is usual"
        )

    begun: dict[Tensor, Tensor] = {}

    def before(inner: Optimizer, *_: Any) -> None:
        for parameter in _moving(inner):
            if SLOW not in inner.state.get(parameter, {}):
                begun[parameter] = parameter.detach().clone(memory_format=torch.preserve_format)

    def after(inner: Optimizer, *_: Any) -> None:
        due = []
        for parameter in _moving(inner):
            state = inner.state[parameter]
            if parameter in begun:
                # Not before the step: Adam takes a state that is there for its own.
                state |= {SLOW: begun.pop(parameter), COUNT: torch.zeros((), dtype=torch.float32)}
            state[COUNT] += 1
            if int(state[COUNT]) % every == 0:
                due.append(parameter)
        if due:
            _pull([_own(inner.state[p][SLOW]) for p in due], [_own(p.detach()) for p in due], share=share)

    optimiser.register_step_pre_hook(before)
    optimiser.register_step_post_hook(after)


def _pull(slow: list[Tensor], fast: list[Tensor], *, share: float) -> None:
    if share < 1:
        torch._foreach_lerp_(slow, fast, share)
        torch._foreach_copy_(fast, slow)
    else:
        torch._foreach_copy_(slow, fast)


def _moving(optimiser: Optimizer) -> list[Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]


def _own(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
