"""A part of labelled data: how much of what is known of it a model is shown, patients as a whole."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from unicl.data.sources import Source
from unicl.errors import UserError
from unicl.space import Finding, Sample


def part_of(source: Source, *, fraction: float, seed: int) -> Source:
    """About ``fraction`` of the samples of every class, and of every class and finding at least one.

    Drawn by ``seed`` alone; a larger fraction of the same seed holds the smaller one, but for what was added to have
    one of each. A sample with several labels counts as one of its first. Of a patient, all samples are in the part or
    none is, and it is patients that are counted. Order stays. Raises `UserError` for a fraction that is none.
    """
    check_fraction(fraction)
    if fraction == 1:
        return source
    taken = part_rows(source.samples, fraction=fraction, seed=seed)
    part = tuple(source.samples[n] for n in taken)
    note = f"{len(part):,} of {len(source.samples):,} samples, drawn by the seed {seed}"
    if any(sample.patient for sample in source.samples):
        few, all_ = (len(together([sample.patient for sample in samples])) for samples in (part, source.samples))
        note = f"{few:,} of {all_:,} patients, {note}"
    return replace(source, samples=part, notes=(*source.notes, note))


def check_fraction(fraction: float) -> None:
    """Raise `UserError` for a number that is no share."""
    if not 0 < fraction <= 1:
        raise UserError(f"the fraction is {fraction:g}, but must lie above 0 and not above 1, such as 0.1")


def part_rows(samples: Sequence[Sample], *, fraction: float, seed: int) -> list[int]:
    """The numbers of the samples of such a part, ascending."""
    units = together([sample.patient for sample in samples])
    order = np.random.default_rng([seed, 11]).permutation(len(units)).tolist()
    classes: dict[str, list[int]] = {}
    for number in order:
        classes.setdefault(next(iter(samples[units[number][0]].labels), ""), []).append(number)
    taken = {n for members in classes.values() for n in members[: max(round(len(members) * fraction), 1)]}
    shown = [{each for row in unit for each in _shown(samples[row])} for unit in units]
    taken |= set(_missing(shown, order, taken=taken))
    return sorted(row for number in taken for row in units[number])


def together(patients: Sequence[str]) -> list[list[int]]:
    """The rows that no split may part: those of each patient, and each row of nobody known ("") by itself."""
    units: dict[Hashable, list[int]] = {}
    for row, patient in enumerate(patients):
        units.setdefault(patient or row, []).append(row)
    return list(units.values())


def _missing(shown: Sequence[set[Hashable]], order: Sequence[int], *, taken: set[int]) -> Iterator[int]:
    """The first unit with each thing that none of those taken shows."""
    seen = {each for number in taken for each in shown[number]}
    for number in order:
        new = shown[number] - seen
        if new:
            seen |= new
            yield number


def _shown(sample: Sample) -> Iterator[Hashable]:
    """What a sample shows that one of a part must show: its classes, and whether each finding is there or not."""
    yield from sample.labels
    yield from ((name, known is Finding.PRESENT) for name, known in sample.findings if known is not Finding.UNCERTAIN)
