"""The classes that samples are sorted into: labels as the data gives them, and the names that people read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from unicl.errors import UserError, suggest
from unicl.evaluate.zeroshot import Truth
from unicl.space import Sample

Names = Sequence[str] | Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """C classes: ``labels`` to find them by, all different, and ``names`` to write prompts with, perhaps not."""

    labels: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample], *, names: Names | None = None) -> Self:
        """The sorted labels of the data, or the given ones: a list, or label to name.

        Equal labels of two sources are one class here, since their texts are equal. Raises `UserError` for a label of
        the data that is not in the list.
        """
        counts = Counter(label for sample in samples for label in sample.labels)
        if names is None:
            return cls(labels=tuple(sorted(counts)), names=tuple(sorted(counts)))
        named = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
        unknown = sorted(label for label in counts if label not in named)
        if unknown:
            raise UserError(_unknown(unknown, counts=counts, known=tuple(named)))
        return cls(labels=tuple(named), names=tuple(named.values()))

    def __len__(self) -> int:
        return len(self.labels)

    def truth(self, samples: Sequence[Sample]) -> tuple[Tensor, Truth]:
        """``(N,)`` the numbers of the samples that have a label of these classes, and their classes."""
        number = {label: k for k, label in enumerate(self.labels)}
        known = [[number[label] for label in sample.labels if label in number] for sample in samples]
        index = [row for row, several in enumerate(known) if several]
        return torch.tensor(index, dtype=torch.int64), Truth.of([known[row] for row in index])


def _unknown(unknown: Sequence[str], *, counts: Counter[str], known: Sequence[str]) -> str:
    first = unknown[0]
    more = f" and {len(unknown) - 1} more labels" if len(unknown) > 1 else ""
    return (
        f"label {first!r} ({counts[first]} samples){more} of the data is not in the list of {len(known)} classes"
        f"{suggest(first, known)}; add it to the list, or leave the list out to take the data's own labels"
    )
