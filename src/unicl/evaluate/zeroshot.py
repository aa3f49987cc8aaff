"""Which class a sample is given: top-k, accuracy of each class, confusion; several labels a sample may be right."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from unicl.evaluate.exact import cosines, grid, tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The classes that each of ``size`` samples shows: entries ``rows (E,)`` and ``classes (E,)``, rows ascending."""

    rows: Tensor
    classes: Tensor
    size: int

    @classmethod
    def of(cls, labels: Tensor | Sequence[Collection[int]]) -> Self:
        """From one class a sample, ``(N,)`` int64, or from a collection of classes a sample."""
        if isinstance(labels, Tensor):
            return cls(rows=torch.arange(len(labels), device=labels.device), classes=labels, size=len(labels))
        pairs = [(row, label) for row, several in enumerate(labels) for label in sorted(set(several))]
        entries = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
        return cls(rows=entries[:, 0].contiguous(), classes=entries[:, 1].contiguous(), size=len(labels))

    def take(self, index: Tensor) -> Self:
        """The samples at ``index (M,)`` int64, all different, in that order."""
        place = torch.full((self.size,), -1, dtype=torch.int64, device=self.rows.device)
        place[index] = torch.arange(len(index), device=self.rows.device)
        rows = place[self.rows]
        order = rows.sort(stable=True).indices
        order = order[rows[order] >= 0]
        return type(self)(rows=rows[order], classes=self.classes[order], size=len(index))

    def part(self, rows: slice) -> Self:
        """The samples of a slice."""
        ends = torch.tensor([rows.start, rows.stop], device=self.rows.device)
        start, stop = torch.searchsorted(self.rows, ends).tolist()
        return type(self)(
            rows=self.rows[start:stop] - rows.start, classes=self.classes[start:stop], size=rows.stop - rows.start
        )

    def mask(self, classes: int) -> Tensor:
        """``(N, C)`` bool."""
        mask = torch.zeros(self.size, classes, dtype=torch.bool, device=self.rows.device)
        mask[self.rows, self.classes] = True
        return mask

    def contains(self, predicted_N: Tensor) -> Tensor:
        """``(N,)`` bool: is the prediction one of the sample's classes."""
        found = torch.zeros(self.size, dtype=torch.bool, device=self.rows.device)
        found[self.rows[self.classes == predicted_N[self.rows]]] = True
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What became of each of N samples.

    * ``predicted``: the class with the highest score, the first one of several.
    * ``nearest``: of the sample's own classes the one with the highest score.
    * ``ranks``: the place of ``nearest`` among all classes, from 1; equal scores stand in the order of the classes.
    * ``margins``: by how much the prediction scores higher; 0 if it is right.
    """

    predicted: Tensor
    nearest: Tensor
    ranks: Tensor
    margins: Tensor

    def hits(self, k: int) -> Tensor:
        """``(N,)`` float64, 1 where one of the sample's classes is among the first ``k``."""
        return (self.ranks <= k).double()


def zero_shot(scores_NC: Tensor, truth: Truth) -> Outcomes:
    """Outcomes of scores of any kind; every sample has at least one class.

    Order at equal scores is the order of the classes, as in a stable sort, so that the first rank is the prediction.
    """
    own = scores_NC.masked_fill(~truth.mask(scores_NC.shape[1]), -torch.inf)
    best, nearest = own.max(1)
    top, predicted = scores_NC.max(1)
    before = torch.arange(scores_NC.shape[1], device=scores_NC.device) < nearest[:, None]
    ahead = (scores_NC > best[:, None]) | ((scores_NC == best[:, None]) & before)
    return Outcomes(predicted=predicted, nearest=nearest, ranks=1 + ahead.sum(1), margins=top - best)


def classify(images_ND: Tensor, classes_CD: Tensor, *, truth: Truth, tile: int = 1024) -> Outcomes:
    """Outcomes of cosines between images and class vectors, both of unit length; at most ``tile`` rows at a time."""
    vectors = grid(classes_CD)
    parts = [
        zero_shot(cosines(grid(images_ND[rows]), vectors), truth.part(rows))
        for rows in tiles(len(images_ND), tile=tile)
    ]
    fields = ("predicted", "nearest", "ranks", "margins")
    return Outcomes(**{name: torch.cat([getattr(part, name) for part in parts]) for name in fields})


def class_accuracies(hits_N: Tensor, truth: Truth, *, classes: int) -> Tensor:
    """``(C,)`` float64: the share of the samples of each class that were right, NaN for a class without samples.

    A sample with several classes counts in each of them, and is right in each if its prediction is one of them.
    """
    zeros = torch.zeros(classes, dtype=torch.float64, device=hits_N.device)
    right = zeros.index_add(0, truth.classes, hits_N.double()[truth.rows])
    return right / zeros.index_add(0, truth.classes, torch.ones_like(truth.rows, dtype=torch.float64))


def confusion(true_N: Tensor, predicted_N: Tensor, *, classes: int) -> Tensor:
    """``(E, 3)`` int64: true class, predicted class, how often; only what happened, so it grows with the samples."""
    cells, counts = torch.unique(true_N * classes + predicted_N, return_counts=True)
    return torch.stack([cells // classes, cells % classes, counts], 1)
