"""Wukong's token reduction: a few learned weighted means of a picture's parts."""

from typing import Final

import torch
from torch import Tensor, nn

GROUPS: Final = 8


class Reducer(nn.Module):
    """``(N, P, D)`` to ``(N, K, D)``: K means over places, weighted by what the places show (Wukong's released code).

    With X the parts after their projection: A = softmax over the places of ``weigh(norm(X))``, K maps by two matrices,
    the first in groups; F = ``change(X)``, a matrix in groups on parts that are not normalised; Z = A F. No matrix has
    a bias. All start as Kaiming et al. 2015 (their outputs counted). D must be a multiple of `GROUPS`.
    """

    def __init__(self, *, width: int, parts: int) -> None:
        super().__init__()
        self.norm: Final = nn.LayerNorm(width)
        self.weigh: Final = nn.Sequential(
            nn.Conv1d(width, width, 1, groups=GROUPS, bias=False), nn.Conv1d(width, parts, 1, bias=False)
        )
        self.change: Final = nn.Conv1d(width, width, 1, groups=GROUPS, bias=False)
        for layer in (*self.weigh, self.change):
            assert isinstance(layer, nn.Conv1d)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def attention(self, values_NPD: Tensor) -> Tensor:
        """``(N, K, P)``: how much each place counts in each mean; each row sums to 1."""
        weights: Tensor = self.weigh(self.norm(values_NPD).transpose(1, 2))
        return torch.softmax(weights, dim=-1)

    def forward(self, values_NPD: Tensor) -> Tensor:
        changed = self.change(values_NPD.transpose(1, 2)).transpose(1, 2)
        reduced: Tensor = self.attention(values_NPD).to(changed.dtype) @ changed
        return reduced
