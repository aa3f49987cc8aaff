"""Which sample comes at which position of an endless, seeded mixture: a pure function, hence exact to resume."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import floor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unicl.data.sources import Source
from unicl.errors import UserError
from unicl.space import Finding, RemoteTar, Streamed

Indices = NDArray[np.int64]
Balance = bool | Literal["findings"]
"""Whether samples are drawn alike (False), labelled and others equally often (True), or those of each finding."""
STRIDE = 256
"""After so many draws it is looked again which tars come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tars:
    """The tars that the samples of a pool lie in: ``numbers`` has that of each; ``reach`` is of their shuffle."""

    tars: tuple[RemoteTar, ...]
    numbers: Indices
    reach: int

    def some(self, mask: NDArray[np.bool_]) -> "Tars":
        """Those of some of the samples."""
        return replace(self, numbers=self.numbers[mask])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Samples that are drawn alike: ``weight`` times each per epoch (2 is twice, 0.5 every other epoch).

    ``indices`` rise. ``tars`` is given if they are streamed: then a pass goes through the tars in random order, the
    samples of each shuffled, and then all over ``reach`` places, so that few tars are in use at a time.
    """

    indices: Indices
    weight: float
    tars: Tars | None = None


class Mixture:
    """An endless order of the samples of several pools.

    In epoch e a pool of n samples of weight w gives the draws ``floor(e w n)`` to ``floor((e + 1) w n)`` of its own
    endless sequence of shuffled passes; the draws of all pools are shuffled together. Hence every sample comes once
    per epoch at weight 1, weights hold exactly, and nothing is dropped at the end of an epoch.
    """

    def __init__(self, pools: Sequence[Pool], *, seed: int) -> None:
        self.pools = tuple(p for p in pools if len(p.indices) and p.weight > 0)
        if not self.pools:
            raise UserError("there is nothing to train on: no source has samples and a weight above 0")
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._order)
        self._pass = lru_cache(maxsize=2 * len(self.pools))(self._permutation)
        self._tars_ahead = lru_cache(maxsize=4)(self._look_ahead)

    def start(self, epoch: int) -> int:
        """The position at which an epoch starts."""
        return sum(self._drawn(pool, epoch) for pool in self.pools)

    def epoch_of(self, position: int) -> int:
        """The epoch that a position belongs to."""
        epoch = floor(position / sum(p.weight * len(p.indices) for p in self.pools))
        while self.start(epoch) > position:
            epoch -= 1
        while self.start(epoch + 1) <= position:
            epoch += 1
        return epoch

    def draw(self, position: int) -> int:
        """The index of the sample at a position, counted over all sources."""
        epoch = self.epoch_of(position)
        return int(self._epoch(epoch)[position - self.start(epoch)])

    def coming(self, position: int) -> tuple[RemoteTar, ...]:
        """The streamed tars that positions from here on need, in order, about as far as the shuffle reaches."""
        return self._tars_ahead(position // STRIDE) if any(pool.tars is not None for pool in self.pools) else ()

    def _look_ahead(self, block: int) -> tuple[RemoteTar, ...]:
        # Once more for the tar that will be fetched while those before it are in use.
        reach = max(p.tars.reach + len(p.indices) // len(p.tars.tars) for p in self.pools if p.tars is not None)
        epoch = self.epoch_of(block * STRIDE)
        start, stop = block * STRIDE - self.start(epoch), (block + 1) * STRIDE + reach - self.start(epoch)
        indices = self._epoch(epoch)[start:stop]
        if len(indices) < stop - start:
            indices = np.concatenate([indices, self._epoch(epoch + 1)[: stop - start - len(indices)]])
        found: dict[int, RemoteTar] = {}
        for pool in self.pools:
            if pool.tars is not None:
                found |= _first_needed(indices, pool=pool, tars=pool.tars)
        return tuple(dict.fromkeys(found[place] for place in sorted(found)))

    def _order(self, epoch: int) -> Indices:
        each = [self._draws(k, epoch) for k in range(len(self.pools))]
        drawn = np.concatenate(each)
        places = np.random.default_rng([self.seed, 1, epoch]).permutation(len(drawn))
        order, first = drawn[places], 0
        for pool, draws in zip(self.pools, each, strict=True):
            if pool.tars is not None:  # its own places, in its own order
                order[(places >= first) & (places < first + len(draws))] = draws
            first += len(draws)
        return order

    def _draws(self, k: int, epoch: int) -> Indices:
        pool = self.pools[k]
        size = len(pool.indices)
        first, last = self._drawn(pool, epoch), self._drawn(pool, epoch + 1)
        passes = range(first // size, -(-last // size))
        sequence = np.concatenate([self._pass(k, p) for p in passes] or [pool.indices[:0]])
        offset = first // size * size
        return sequence[first - offset : last - offset]

    def _permutation(self, k: int, number: int) -> Indices:
        rng, pool = np.random.default_rng([self.seed, 2, k, number]), self.pools[k]
        return rng.permutation(pool.indices) if pool.tars is None else pool.indices[_by_tars(pool.tars, rng=rng)]

    @staticmethod
    def _drawn(pool: Pool, epoch: int) -> int:
        return floor(epoch * pool.weight * len(pool.indices) + 1e-9)


def pools_of(sources: Sequence[Source], *, balance: Balance) -> tuple[Pool, ...]:
    """One pool a source; with ``balance``, labelled and other samples are drawn equally often, the fewer repeated.

    The balanced sampler of UniCL (section 4); data of one kind only is left as it is. "findings" balances images and
    texts each by the rarest finding that a sample has: those of every finding, and those without any, equally often.
    """
    starts = np.cumsum([0, *(len(s.samples) for s in sources)])
    pools = [
        Pool(indices=np.arange(start, start + len(source.samples)), weight=source.weight, tars=_tars(source))
        for start, source in zip(starts, sources, strict=False)
    ]
    if balance == "findings":
        return _by_finding(pools, sources)
    return _balanced(pools, sources) if balance else tuple(pools)


def _balanced(pools: Sequence[Pool], sources: Sequence[Source]) -> tuple[Pool, ...]:
    labelled: NDArray[np.bool_] = np.array(
        [bool(sample.labels) for source in sources for sample in source.samples], dtype=bool
    )
    halves = [[_part(pool, labelled[pool.indices] == wanted) for pool in pools] for wanted in (True, False)]
    totals = [sum(p.weight * len(p.indices) for p in half) for half in halves]
    if not all(totals):
        return tuple(pools)
    return tuple(
        replace(pool, weight=pool.weight * max(totals) / total)
        for half, total in zip(halves, totals, strict=True)
        for pool in half
    )


def _by_finding(pools: Sequence[Pool], sources: Sequence[Source]) -> tuple[Pool, ...]:
    samples = [sample for source in sources for sample in source.samples]
    present = [[name for name, known in s.findings if known == Finding.PRESENT] for s in samples]
    common = Counter(name for names in present for name in names)
    # The rarest one of a sample, so that common companions do not hide it.
    groups = np.array(
        [min(names, key=lambda name: (common[name], name), default="") for names in present], dtype=object
    )
    seen = np.array([sample.image is not None for sample in samples])
    parts: list[Pool] = []
    for side in (True, False):
        each = [
            [_part(pool, (seen[pool.indices] == side) & (groups[pool.indices] == group)) for pool in pools]
            for group in sorted(set(groups[seen == side]))
        ]
        totals = [sum(p.weight * len(p.indices) for p in group) for group in each]
        parts += [
            replace(pool, weight=pool.weight * max(totals) / total)
            for group, total in zip(each, totals, strict=True)
            for pool in group
        ]
    return tuple(parts)


def _part(pool: Pool, mask: NDArray[np.bool_]) -> Pool:
    return replace(pool, indices=pool.indices[mask], tars=None if pool.tars is None else pool.tars.some(mask))


def _tars(source: Source) -> Tars | None:
    if not source.reach:
        return None
    known: dict[RemoteTar, int] = {}
    numbers = np.zeros(len(source.samples), dtype=np.int64)
    last = 0
    for place, sample in enumerate(source.samples):
        # A sample without an image is drawn with the tar before it.
        if isinstance(sample.image, Streamed):
            last = known.setdefault(sample.image.tar, len(known))
        numbers[place] = last
    return Tars(tars=tuple(known), numbers=numbers, reach=source.reach) if known else None


def _by_tars(tars: Tars, *, rng: np.random.Generator) -> Indices:
    """An order of a pool's samples that needs few tars at a time."""
    count = len(tars.numbers)
    turns = rng.permutation(len(tars.tars))
    order = np.lexsort((rng.random(count), turns[tars.numbers]))
    if tars.reach >= count:
        return rng.permutation(count)
    # Each moves by up to half of the reach, mirrored at both ends, which are mixed like the middle then.
    place = np.abs(np.arange(count) + (rng.random(count) - 0.5) * tars.reach)
    place = np.where(place > count - 1, 2 * (count - 1) - place, place)
    return order[np.argsort(place, kind="stable")]


def _first_needed(indices: Indices, *, pool: Pool, tars: Tars) -> dict[int, RemoteTar]:
    """At which place of ``indices`` each tar of the pool is needed first."""
    row = np.searchsorted(pool.indices, indices).clip(max=len(pool.indices) - 1)
    places = np.flatnonzero(pool.indices[row] == indices)
    numbers = tars.numbers[row[places]]
    found, firsts = np.unique(numbers, return_index=True)
    return {int(place): tars.tars[number] for number, place in zip(found, places[firsts], strict=True)}
