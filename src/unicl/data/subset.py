"""A part of labelled data: how much of what is known of it a model is shown."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from unicl.data.sources import Source
from unicl.errors import UserError
from unicl.space import Finding, Sample


def part_of(source: Source, *, fraction: float, seed: int) -> Source:
    """About ``fraction`` of the samples of every class, and of every class and finding at least one.

    Drawn by ``seed`` alone; a larger fraction of the same seed holds the smaller one, but for what was added to have
    one of each. A sample with several labels counts as one of its first. Order stays. Raises `UserError` for a
    fraction that is none.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"the fraction is {fraction:g}, but must lie above 0 and not above 1, such as 0.1")
    if fraction == 1:
        return source
    taken = part_rows(source.samples, fraction=fraction, seed=seed)
    note = f"{len(taken):,} of {len(source.samples):,} samples, drawn by the seed {seed}"
    return replace(source, samples=tuple(source.samples[n] for n in taken), notes=(*source.notes, note))


def part_rows(samples: Sequence[Sample], *, fraction: float, seed: int) -> list[int]:
    """The numbers of the samples of such a part, ascending."""
    order = np.random.default_rng([seed, 11]).permutation(len(samples)).tolist()
    classes: dict[str, list[int]] = {}
    for number in order:
        classes.setdefault(next(iter(samples[number].labels), ""), []).append(number)
    taken = {n for members in classes.values() for n in members[: max(round(len(members) * fraction), 1)]}
    return sorted(taken | set(_missing(samples, order, taken=taken)))


def _missing(samples: Sequence[Sample], order: Sequence[int], *, taken: set[int]) -> Iterator[int]:
    """The first sample of each thing that none of those taken shows."""
    seen = {each for number in taken for each in _shown(samples[number])}
    for number in order:
        new = set(_shown(samples[number])) - seen
        if new:
            seen |= new
            yield number


def _shown(sample: Sample) -> Iterator[Hashable]:
    """What a sample shows that one of a part must show: its classes, and whether each finding is there or not."""
    yield from sample.labels
    yield from ((name, known is Finding.PRESENT) for name, known in sample.findings if known is not Finding.UNCERTAIN)
