"""LAMB: Adam's step for each weight, at a length that is a share of the weight's own (You et al. 2020).

Three algorithms have this name, and give three different runs: see `Variant`.
"""

from collections.abc import Callable
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate
from torch.optim import Optimizer

LONGEST: Final = 10.0
"""No weight counts as longer than this in the paper's version 3."""

Variant = Literal["uncorrected", "corrected", "nvidia"]
"""Which LAMB.

* "uncorrected" (FILIP): cybertronai/pytorch-lamb, version 3 of the paper. Adam's moments as they are; a weight counts
  as `LONGEST` at most; where a norm is 0, the ratio is 1.
* "corrected" (ALIGN): TensorFlow Addons. Adam's moments with the correction of the first steps, and no longest weight;
  what is listed as not decaying takes Adam's own step.
* "nvidia": NVLAMB, as in timm. As "corrected", but without decay every weight takes Adam's own step. It also brings all
  gradients to a norm of 1 together before anything else, which ``optim.clip`` does here.
"""


class Lamb(Optimizer):
    """Each weight moves by ``lr * |weight| / |step|`` times its step ``m / (sqrt(v) + eps) + decay * weight``.

    ``m`` and ``v`` are Adam's moments; what differs between variants is in `Variant`. Norms are those of whole
    tensors, also where each process holds a part. Groups hold ``weight_decay``, and whether they are among those that
    decay, ``decays``: others take Adam's own step, but in "uncorrected".
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        variant: Variant = "uncorrected",
    ) -> None:
        self.variant: Final = variant
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "decays": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient; there is no closure."""
        assert closure is None
        for group in self.param_groups:
            held = [p for p in group["params"] if p.grad is not None]
            if held:
                self._move(held, group)

    def _move(self, held: list[Tensor], group: dict[str, Any]) -> None:
        steps = self._steps(held, group)
        weights = [_own(p) for p in held]
        if group["weight_decay"]:
            torch._foreach_add_(steps, weights, alpha=group["weight_decay"])
        if self._adapts(group):
            weight, step = _norms(weights, steps, like=held)
            longest = LONGEST if self.variant == "uncorrected" else torch.inf
            ratios = torch.where((weight == 0) | (step == 0), 1, weight.clamp(max=longest) / step)
            torch._foreach_mul_(steps, list((ratios * group["lr"]).unbind()))
        else:
            torch._foreach_mul_(steps, group["lr"])
        torch._foreach_sub_(weights, steps)

    def _adapts(self, group: dict[str, Any]) -> bool:
        match self.variant:
            case "uncorrected":
                return True
            case "corrected":
                return bool(group["decays"])
            case "nvidia":
                return bool(group["weight_decay"])

    def _steps(self, held: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Adam's step of each weight, without rate and decay."""
        beta1, beta2 = group["betas"]
        states = [self._state(p) for p in held]
        grads = [_own(p.grad) for p in held if p.grad is not None]
        means, squares = ([_own(state[name]) for state in states] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, grads, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        below = torch._foreach_sqrt(squares)
        if self.variant == "uncorrected":
            torch._foreach_add_(below, group["eps"])
            return list(torch._foreach_div(means, below))
        for state in states:
            state["step"] += 1
        counts = [float(state["step"]) for state in states]
        torch._foreach_div_(below, [(1 - beta2**count) ** 0.5 for count in counts])
        torch._foreach_add_(below, group["eps"])
        torch._foreach_mul_(below, [1 - beta1**count for count in counts])
        return list(torch._foreach_div(means, below))

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            if self.variant != "uncorrected":
                state["step"] = torch.zeros((), dtype=torch.float64)
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
