"""Findings as a table of what is known of each image, and how well scores order it: the area under the ROC curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from unicl.evaluate.bootstrap import Statistic
from unicl.space import Finding, Sample

Counts = Literal["absent", "ignored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """``yes (N, C)`` and ``asked (N, C)`` bool: whether a finding is there, and whether that is known."""

    yes: Tensor
    asked: Tensor

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        names: Sequence[str],
        *,
        unmentioned: Counts = "absent",
        uncertain: Counts = "ignored",
    ) -> Self:
        """What samples say of findings by name: of one without any, nothing is asked.

        A finding that is not mentioned counts as ``unmentioned`` says, as does one that the sample's table lacks.
        """
        value = {
            Finding.PRESENT: 1,
            Finding.ABSENT: 0,
            Finding.UNCERTAIN: 0 if uncertain == "absent" else -1,
            Finding.UNMENTIONED: 0 if unmentioned == "absent" else -1,
        }
        rows = [dict(sample.findings) for sample in samples]
        table = [[value[row.get(name, Finding.UNMENTIONED)] if row else -1 for name in names] for row in rows]
        values_NC = torch.tensor(table, dtype=torch.int64).reshape(len(samples), len(names))
        return cls(yes=values_NC == 1, asked=values_NC >= 0)


def area_statistic(scores_NC: Tensor, known: Known) -> Statistic:
    """The mean area under the ROC curve, then that of each finding, of samples that are drawn again.

    The area is the share of pairs of a yes and a no that stand in order, a tie for half (Mann and Whitney's U). It is
    NaN for a finding that all images have, or none, and the mean is over the others.
    """
    columns = [_column(scores_NC[:, c].double(), known.yes[:, c], known.asked[:, c]) for c in range(scores_NC.shape[1])]

    def statistic(weights_RN: Tensor) -> Tensor:
        areas_RC = torch.stack([column(weights_RN) for column in columns], 1)
        return torch.cat([areas_RC.nanmean(1, keepdim=True), areas_RC], 1)

    return statistic


def areas(scores_NC: Tensor, known: Known) -> Tensor:
    """``(C,)`` float64: the area under the ROC curve of each finding, as in `area_statistic`."""
    return area_statistic(scores_NC, known)(torch.ones(1, len(scores_NC), dtype=torch.float64))[0, 1:]


def _column(scores: Tensor, yes: Tensor, asked: Tensor) -> Statistic:
    rows = asked.nonzero()[:, 0]
    values, place = torch.unique(scores[rows], return_inverse=True)
    there = yes[rows]

    def statistic(weights_RN: Tensor) -> Tensor:
        own, none = weights_RN[:, rows], torch.zeros(len(weights_RN), len(values), dtype=torch.float64)
        right = none.index_add(1, place[there], own[:, there])
        wrong = none.index_add(1, place[~there], own[:, ~there])
        in_order = (right * (wrong.cumsum(1) - wrong / 2)).sum(1)
        return in_order / (right.sum(1) * wrong.sum(1))

    return statistic
