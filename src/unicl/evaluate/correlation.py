"""How well scores agree with ratings of people: Spearman's correlation, and CxC's average over draws of pairs."""

from collections.abc import Iterator

import torch
from scipy.stats import rankdata
from torch import Tensor

from unicl.evaluate.bootstrap import CELLS, Statistic

DRAWS = 1000


def spearman(left_RN: Tensor, right_RN: Tensor) -> Tensor:
    """``(R,)`` correlations of the ranks of each row, equal values sharing their mean rank; NaN if all are equal."""
    return _pearson(*(torch.from_numpy(rankdata(each.double().numpy(), axis=1)) for each in (left_RN, right_RN)))


def drawn_correlations(
    scores_N: Tensor, ratings_N: Tensor, *, queries_N: Tensor, draws: int = DRAWS, seed: int = 0
) -> Tensor:
    """``(B,)`` correlations of B draws, each of half of the queries and one rated pair of each (CxC, section 4).

    Queries are drawn with replacement, so that one with many ratings counts no more than another. ``queries_N`` says
    which query, from 0, a pair belongs to. A draw in which all scores or all ratings are equal counts as 0.
    """
    order = queries_N.argsort(stable=True)
    sizes = torch.bincount(queries_N)
    starts = sizes.cumsum(0) - sizes
    generator = torch.Generator().manual_seed(seed)
    found = []
    for picked_RM in _picked(len(sizes), draws=draws, generator=generator):
        share = torch.rand(picked_RM.shape, generator=generator, dtype=torch.float64)
        pairs_RM = order[starts[picked_RM] + (share * sizes[picked_RM]).long()]
        found.append(spearman(scores_N[pairs_RM], ratings_N[pairs_RM]))
    return torch.cat(found).nan_to_num(nan=0.0)


def correlations(scores_N: Tensor, ratings_N: Tensor, *, queries_N: Tensor) -> Statistic:
    """Spearman's correlation of all pairs, where each counts as often as its query was drawn; 0 if all are equal."""
    scores, ratings = _Ordered(scores_N), _Ordered(ratings_N)

    def statistic(weights_RQ: Tensor) -> Tensor:
        weights_RN = weights_RQ[:, queries_N]
        found = _pearson(scores.ranks(weights_RN), ratings.ranks(weights_RN), weights_RN)
        return found.nan_to_num(nan=0.0)[:, None]

    return statistic


class _Ordered:
    """Values by size: their ranks when each is there as often as a weight says."""

    def __init__(self, values_N: Tensor) -> None:
        levels, self._level_N = torch.unique(values_N.double(), return_inverse=True)
        self._size = len(levels)

    def ranks(self, weights_RN: Tensor) -> Tensor:
        """Mean ranks less a half, which no correlation sees."""
        sums = torch.zeros(len(weights_RN), self._size, dtype=torch.float64)
        sums.index_add_(1, self._level_N, weights_RN)
        return (sums.cumsum(1) - sums / 2)[:, self._level_N]


def _pearson(left_RN: Tensor, right_RN: Tensor, weights_RN: Tensor | None = None) -> Tensor:
    weights_RN = torch.ones_like(left_RN) if weights_RN is None else weights_RN
    total = weights_RN.sum(1, keepdim=True)
    left, right = (each - (weights_RN * each).sum(1, keepdim=True) / total for each in (left_RN, right_RN))
    spread = ((weights_RN * left**2).sum(1) * (weights_RN * right**2).sum(1)).sqrt()
    return (weights_RN * left * right).sum(1) / spread


def _picked(queries: int, *, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Some draws at a time, ``(R, M)``: half of the queries, and two at least."""
    size = max(2, queries // 2)
    rows = max(1, CELLS // size)
    for start in range(0, draws, rows):
        yield torch.randint(queries, (min(rows, draws - start), size), generator=generator)
