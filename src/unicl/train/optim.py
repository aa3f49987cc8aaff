"""What the optimiser does at a step: parameter groups, learning rate, clipping, moving average."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSettings:
    """AdamW with linear warm-up and a cosine to ``lr * final``; CLIP's values (tables 18 to 20) but for the warm-up.

    ``warmup`` counts steps, or is a share of all steps if below 1. ``clip`` bounds the norm of the gradient.
    """

    lr: float = 5e-4
    weight_decay: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    warmup: float = 0.1
    final: float = 0.0
    clip: float | None = 1.0


def learning_rate(step: int, *, steps: int, settings: OptimSettings) -> float:
    """The learning rate of a step (counted from 0) of a run of ``steps``."""
    warmup = settings.warmup * steps if settings.warmup < 1 else settings.warmup
    if step < warmup:
        return settings.lr * (step + 1) / max(warmup, 1)
    done = (step - warmup) / max(steps - warmup, 1)
    return settings.lr * (settings.final + (1 - settings.final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay; gains, biases and scales (fewer than two dimensions) do not (CLIP, section 2.5)."""
    learning = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """The optimiser of a model, fused where the device has that kernel."""
    groups = parameter_groups(model, weight_decay=settings.weight_decay)
    betas = (settings.beta1, settings.beta2)
    device = next(model.parameters()).device.type
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=device in ("cuda", "cpu"))


def clip(parameters: Iterable[nn.Parameter], *, norm: float | None) -> Tensor:
    """Bring the gradient's norm down to ``norm`` if it is above; returns the norm before."""
    return nn.utils.clip_grad_norm_(list(parameters), math.inf if norm is None else norm)


class Average:
    """An exponential moving average of a model's floating-point state: what is evaluated and saved for use.

    In the first steps the decay is ``(1 + step) / (10 + step)``, so that random initial weights do not linger.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int) -> None:
        """Move towards the model after a step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the average and the model's own weights; done twice, everything is as before."""
        for name, value in model.state_dict().items():
            own = value.clone()
            value.copy_(self.state[name])
            self.state[name].copy_(own)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up a saved average."""
        for name, value in self.state.items():
            value.copy_(state[name])
