"""Percentile confidence intervals: the samples are drawn again, with replacement, and every number with them.

Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Statistic = Callable[[Tensor], Tensor]
"""``(R, N)`` float64, how often each of R resamples holds each sample, to ``(R, S)`` numbers; NaN where undefined."""

CELLS = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How intervals are made: number of resamples, coverage, and the seed that every task starts from."""

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def bounds(self, statistic: Statistic, *, samples: int) -> Tensor:
        """``(2, S)`` lower and upper ends of the interval of each number of the statistic."""
        drawn = torch.cat([statistic(weights_RN) for weights_RN in self._draw(samples)])
        tail = (1 - self.level) / 2
        return torch.stack([_quantile(drawn, tail), _quantile(drawn, 1 - tail)])

    def _draw(self, samples: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        rows = max(1, CELLS // max(samples, 1))
        for start in range(0, self.resamples, rows):
            size = (min(rows, self.resamples - start), samples)
            index = torch.randint(max(samples, 1), size, generator=generator)
            yield torch.zeros(size, dtype=torch.float64).scatter_add_(1, index, torch.ones(size, dtype=torch.float64))


def by_unit(statistic: Statistic, units: Sequence[Sequence[int]]) -> tuple[Statistic, int]:
    """The statistic of U units that are drawn whole, each the numbers of its samples, and U."""
    unit_N = torch.zeros(sum(map(len, units)), dtype=torch.int64)
    for number, rows in enumerate(units):
        unit_N[list(rows)] = number
    return lambda weights_RU: statistic(weights_RU[:, unit_N]), len(units)


def ratios(sums_NS: Tensor, *, counts_NS: Tensor) -> Statistic:
    """Means over the items of all samples, where a sample holds ``counts`` items that add up to ``sums``."""
    sums_NS, counts_NS = sums_NS.double(), counts_NS.double()
    return lambda weights_RN: (weights_RN @ sums_NS) / (weights_RN @ counts_NS)


def means(values_NS: Tensor) -> Statistic:
    """Means of one value a sample."""
    return ratios(values_NS, counts_NS=torch.ones_like(values_NS))


def grouped_means(values_E: Tensor, *, samples_E: Tensor, groups_E: Tensor, groups: int) -> Statistic:
    """The mean of each group and, first, the mean of those means; a group that a resample misses is left out of it."""
    values_E = values_E.double()

    def statistic(weights_RN: Tensor) -> Tensor:
        weights_RE = weights_RN[:, samples_E]
        zeros = torch.zeros(len(weights_RN), groups, dtype=torch.float64)
        sums = zeros.index_add(1, groups_E, weights_RE * values_E)
        of_groups = sums / zeros.index_add(1, groups_E, weights_RE)
        return torch.cat([of_groups.nanmean(1, keepdim=True), of_groups], 1)

    return statistic


def medians(values_Q: Tensor, *, samples_Q: Tensor) -> Statistic:
    """The median of items that belong to samples: with an even number, the mean of the two in the middle."""
    ordered, order = values_Q.double().sort(stable=True)

    def statistic(weights_RN: Tensor) -> Tensor:
        running = weights_RN[:, samples_Q[order]].cumsum(1)
        total = running[:, -1:]
        middles = torch.cat([((total + 1) / 2).floor(), (total / 2).floor() + 1], 1)
        found = torch.searchsorted(running, middles).clamp(max=len(ordered) - 1)
        return ordered[found].mean(1, keepdim=True).masked_fill(total == 0, torch.nan)

    return statistic


def together(*statistics: Statistic) -> Statistic:
    """Several statistics of the same resamples, side by side."""
    return lambda weights_RN: torch.cat([statistic(weights_RN) for statistic in statistics], 1)


def _quantile(drawn_RS: Tensor, share: float) -> Tensor:
    """Interpolated quantiles of each column without its NaNs; torch's own stops at 16 million cells."""
    ordered = drawn_RS.sort(0).values  # NaNs come last
    valid = (~drawn_RS.isnan()).sum(0)
    place = share * (valid - 1).clamp(min=0).double()
    low = place.floor().long()
    high = torch.minimum(low + 1, (valid - 1).clamp(min=0))
    return ordered.gather(0, low[None])[0].lerp(ordered.gather(0, high[None])[0], place - low)
