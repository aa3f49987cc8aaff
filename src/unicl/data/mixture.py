"""Which sample comes at which position of an endless, seeded mixture: a pure function, hence exact to resume."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor

import numpy as np
from numpy.typing import NDArray

from unicl.data.sources import Source
from unicl.errors import UserError

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Samples that are drawn alike: ``weight`` times each per epoch (2 is twice, 0.5 every other epoch)."""

    indices: Indices
    weight: float


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

    def _order(self, epoch: int) -> Indices:
        drawn = np.concatenate([self._draws(k, epoch) for k in range(len(self.pools))])
        return np.random.default_rng([self.seed, 1, epoch]).permutation(drawn)

    def _draws(self, k: int, epoch: int) -> Indices:
        pool = self.pools[k]
        size = len(pool.indices)
        first, last = self._drawn(pool, epoch), self._drawn(pool, epoch + 1)
        passes = range(first // size, -(-last // size))
        sequence = np.concatenate([self._pass(k, p) for p in passes] or [pool.indices[:0]])
        offset = first // size * size
        return sequence[first - offset : last - offset]

    def _permutation(self, k: int, number: int) -> Indices:
        return np.random.default_rng([self.seed, 2, k, number]).permutation(self.pools[k].indices)

    @staticmethod
    def _drawn(pool: Pool, epoch: int) -> int:
        return floor(epoch * pool.weight * len(pool.indices) + 1e-9)


def pools_of(sources: Sequence[Source], *, balance: bool) -> tuple[Pool, ...]:
    """One pool a source; with ``balance``, labelled and other samples are drawn equally often, the fewer repeated.

    The balanced sampler of UniCL (section 4); data of one kind only is left as it is.
    """
    starts = np.cumsum([0, *(len(s.samples) for s in sources)])
    pools = [
        Pool(indices=np.arange(start, start + len(source.samples)), weight=source.weight)
        for start, source in zip(starts, sources, strict=False)
    ]
    return _balanced(pools, sources) if balance else tuple(pools)


def _balanced(pools: Sequence[Pool], sources: Sequence[Source]) -> tuple[Pool, ...]:
    labelled: NDArray[np.bool_] = np.array(
        [bool(sample.labels) for source in sources for sample in source.samples], dtype=bool
    )
    halves = [
        [Pool(indices=pool.indices[labelled[pool.indices] == wanted], weight=pool.weight) for pool in pools]
        for wanted in (True, False)
    ]
    totals = [sum(p.weight * len(p.indices) for p in half) for half in halves]
    if not all(totals):
        return tuple(pools)
    return tuple(
        Pool(indices=pool.indices, weight=pool.weight * max(totals) / total)
        for half, total in zip(halves, totals, strict=True)
        for pool in half
    )
