"""One data set into a part to learn from and a part to measure on, with every class in both."""

from collections.abc import Sequence

import torch
from torch import Tensor


def stratified(classes: Sequence[int], *, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices ``(train, test)``, each ascending: of every class about ``fraction`` to the test, at least one.

    A class with one sample stays in training. Samples are drawn by ``generator`` class by class.
    """
    label = torch.tensor(classes, dtype=torch.int64)
    test = [torch.zeros(0, dtype=torch.int64)]
    for value in sorted(set(label.tolist())):
        members = (label == value).nonzero()[:, 0]
        shuffled = members[torch.randperm(len(members), generator=generator)]
        test.append(shuffled[: _share(len(members), fraction)])
    chosen = torch.cat(test).sort().values
    rest = torch.ones(len(label), dtype=torch.bool)
    rest[chosen] = False
    return rest.nonzero()[:, 0], chosen


def _share(size: int, fraction: float) -> int:
    return min(max(round(size * fraction), 1), size - 1)
