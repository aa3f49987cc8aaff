"""The learned multiplier of scores, and its bias."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSettings:
    """The multiplier of a similarity (the inverse temperature): start, limits, and SigLIP's bias if any.

    CLIP starts at 1/0.07 and keeps it at or below 100 (section 2.5); UniCL's code starts at e without a limit;
    Chinese-CLIP's keeps it at or above 1 as well. ``form`` is what is learned: the multiplier's "logarithm" (CLIP), or
    the temperature itself, which scores are divided by ("divisor": ALIGN, section 4.2, equations 1 and 2).
    """

    init: float = 1 / 0.07
    min: float | None = None
    max: float | None = 100.0
    bias: float | None = None
    learned: bool = True
    form: Literal["logarithm", "divisor"] = "logarithm"


class Scale(nn.Module):
    """A positive multiplier, with an optional learned bias; its one parameter is named by the form in which it learns.

    A temperature that the optimiser brings to 0 or below has left its meaning: where that may happen, set ``max``.
    """

    log_scale: nn.Parameter
    temperature: nn.Parameter

    def __init__(self, settings: ScaleSettings) -> None:
        super().__init__()
        self.settings = settings
        if settings.form == "divisor":
            self.temperature = nn.Parameter(torch.tensor(1 / settings.init), requires_grad=settings.learned)
        else:
            self.log_scale = nn.Parameter(torch.tensor(math.log(settings.init)), requires_grad=settings.learned)
        bias = None if settings.bias is None else torch.tensor(float(settings.bias))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=settings.learned)

    @property
    def value(self) -> float:
        """The multiplier as a number."""
        return float(self().detach())

    def forward(self) -> Tensor:
        """The multiplier, ``()``, with its gradient."""
        return 1 / self.temperature if self.settings.form == "divisor" else self.log_scale.exp()

    def logarithm(self) -> Tensor:
        """The multiplier's logarithm, ``()``, without a gradient: what checkpoints hold."""
        return self().detach().log() if self.settings.form == "divisor" else self.log_scale.detach()

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring the parameter back between its limits; after each step, since a clamp in forward has no gradient."""
        low, high = self.settings.min, self.settings.max
        if low is None and high is None:
            return
        if self.settings.form == "divisor":
            self.temperature.clamp_(min=high and 1 / high, max=low and 1 / low)
        else:
            self.log_scale.clamp_(min=low and math.log(low), max=high and math.log(high))
