"""LAMB as FILIP took it: Adam's step for each weight, at a length that is a share of the weight's own.

Three algorithms have this name (You et al. 2020 and its earlier versions). This is the one of cybertronai/pytorch-lamb,
which follows version 3 of the paper.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate
from torch.optim import Optimizer

LONGEST: Final = 10.0
"""No weight counts as longer than this."""


class Lamb(Optimizer):
    """Each weight moves by ``lr * min(|weight|, 10) / |step|`` times its step ``m / (sqrt(v) + eps) + decay * weight``.

    ``m`` and ``v`` are Adam's moments without its correction of the first steps. Where a norm is 0, the ratio is 1.
    Norms are those of whole tensors, also where each process holds a part. Groups hold ``weight_decay``.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient; there is no closure."""
        assert closure is None
        for group in self.param_groups:
            held = [p for p in group["params"] if p.grad is not None]
            if held:
                self._move(held, group)

    def _move(self, held: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        grads = [_own(p.grad) for p in held if p.grad is not None]
        means, squares = ([_own(self._state(p)[name]) for p in held] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, grads, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        below = torch._foreach_sqrt(squares)
        torch._foreach_add_(below, group["eps"])
        steps = list(torch._foreach_div(means, below))
        weights = [_own(p) for p in held]
        if group["weight_decay"]:
            torch._foreach_add_(steps, weights, alpha=group["weight_decay"])
        weight, step = _norms(weights, steps, like=held)
        ratios = torch.where((weight == 0) | (step == 0), 1, weight.clamp(max=LONGEST) / step)
        torch._foreach_mul_(steps, list((ratios * group["lr"]).unbind()))
        torch._foreach_sub_(weights, steps)

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return state


def _own(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _norms(weights: list[Tensor], steps: list[Tensor], *, like: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``(K,)`` twice: norms of whole tensors, of which ``weights`` and ``steps`` are what this process holds."""
    norms_2K = torch.stack([torch.stack(torch._foreach_norm(each)) for each in (weights, steps)])
    shards = [(k, p.device_mesh, p.placements) for k, p in enumerate(like) if isinstance(p, DTensor)]
    for mesh, placements in dict.fromkeys((mesh, placements) for _, mesh, placements in shards):
        columns = [k for k, *kind in shards if kind == [mesh, placements]]
        norms_2K[:, columns] = _together(norms_2K[:, columns].square(), mesh, placements).sqrt()
    return norms_2K[0], norms_2K[1]


def _together(sums: Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> Tensor:
    """Sums over the processes that hold different parts."""
    kinds = [Partial() if placement.is_shard() else Replicate() for placement in placements]
    return DTensor.from_local(sums, mesh, kinds).full_tensor()
