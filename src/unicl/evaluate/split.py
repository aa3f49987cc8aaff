"""One data set into a part to learn from and a part to measure on: every class in both, and no patient in both."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from unicl.data.subset import together
from unicl.space import Sample


def stratified(
    classes: Sequence[int], *, fraction: float, generator: torch.Generator, patients: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Indices ``(train, test)``, each ascending: of every class about ``fraction`` to the test, at least one.

    A class with one sample stays in training, and so does a class that would be in the test alone. Samples are drawn by
    ``generator`` class by class. With ``patients``, one name a sample and "" for nobody known, all samples of a patient
    are in one part: patients are drawn, each for the rarest of his classes.
    """
    units = together(patients or [""] * len(classes))
    kinds = _kinds(classes, units)
    test: set[int] = set()
    for value in sorted(set(kinds)):
        members = [number for number, kind in enumerate(kinds) if kind == value]
        order = torch.randperm(len(members), generator=generator).tolist()
        test.update(members[k] for k in order[: _share(len(members), fraction)])
    learnt = {classes[k] for number, unit in enumerate(units) if number not in test for k in unit}
    for number in sorted(test):
        if missing := {classes[k] for k in units[number]} - learnt:
            learnt |= missing
            test.remove(number)
    return _rows(units, set(range(len(units))) - test), _rows(units, test)


def divisible(classes: Sequence[int], *, patients: Sequence[str] = ()) -> bool:
    """Whether `stratified` finds something to measure on."""
    return max(Counter(_kinds(classes, together(patients or [""] * len(classes)))).values(), default=0) > 1


def patients_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The patient of each sample."""
    return tuple(sample.patient for sample in samples)


def told(training: Sequence[Sample], test: Sequence[Sample]) -> str:
    """What a split was made by, for a report: "by patient, 160 / 40 (812 / 203 images)"."""
    parts, sizes = (training, test), f"{len(training):,} / {len(test):,}"
    if not any(sample.patient for part in parts for sample in part):
        return f"by image, {sizes}"
    known = (f"{len(together(patients_of(part))):,}" for part in parts)
    return f"by patient, {' / '.join(known)} ({sizes} images)"


def shared_patients(training: Sequence[Sample], test: Sequence[Sample]) -> tuple[str, ...]:
    """What is to be said of patients that are in both parts, if any are."""
    both = (set(patients_of(training)) & set(patients_of(test))) - {""}
    if not both:
        return ()
    said = f"patients of one name in the training and in the test data: {len(both):,} (such as {min(both)!r})"
    return (f"{said}; unless they are others, the numbers flatter",)


def _kinds(classes: Sequence[int], units: Sequence[Sequence[int]]) -> list[int]:
    """The class by which each unit is drawn: the rarest of its samples'."""
    sizes = Counter(classes)
    return [min((classes[k] for k in unit), key=lambda value: (sizes[value], value)) for unit in units]


def _rows(units: Sequence[Sequence[int]], numbers: set[int]) -> Tensor:
    return torch.tensor(sorted(k for number in numbers for k in units[number]), dtype=torch.int64)


def _share(size: int, fraction: float) -> int:
    return min(max(round(size * fraction), 1), size - 1)
