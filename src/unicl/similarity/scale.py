"""The learned multiplier of scores, and its bias."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSettings:
    """The multiplier of a similarity (the inverse temperature): start, upper limit, and SigLIP's bias if any.

    CLIP starts at 1/0.07 and keeps it at or below 100 (section 2.5); UniCL's code starts at e without a limit.
    """

    init: float = 1 / 0.07
    max: float | None = 100.0
    bias: float | None = None
    learned: bool = True


class Scale(nn.Module):
    """A positive multiplier learned as its logarithm, with an optional learned bias."""

    def __init__(self, settings: ScaleSettings) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(settings.init)), requires_grad=settings.learned)
        bias = None if settings.bias is None else torch.tensor(float(settings.bias))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=settings.learned)
        self.log_max = None if settings.max is None else math.log(settings.max)

    @property
    def value(self) -> float:
        """The multiplier as a number."""
        return float(self.log_scale.detach().exp())

    def forward(self) -> Tensor:
        """The multiplier, ``()``, with its gradient."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring the parameter back below its limit; done after each step, since a clamp in forward has no gradient."""
        if self.log_max is not None:
            self.log_scale.clamp_(max=self.log_max)
