"""Near-duplicates among many images: a 64-bit hash proposes pairs, a small grid of colours decides.

The hash is the sign-like pattern of the 64 lowest frequencies of the brightness (a "pHash"). A coefficient counts as
set when it is clearly positive, not when it is above the median: drawings on a plain ground have many coefficients
near zero, and noise would flip them.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

Hashes = npt.NDArray[np.uint64]
Grids = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

BITS = 64
BANDS = 4
GRID = 12
SIDE = 32
CLEAR = 8.0  # of an orthonormal 32x32 DCT: half a grey level
REACH = 7  # bits in which the hashes of a pair may differ
SPREAD = 24  # levels by which any cell of the two grids may differ,
CONTRAST = 0.25  # and as a share of the span of the flatter of the two
PLAIN = 12  # levels between the darkest and the brightest cell of an image without content
BUDGET = 8_000_000_000  # candidate pairs; about a minute on one core
CHUNK = 1 << 16  # candidate pairs at once: what a core's cache holds


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is kept of an image to find its near-duplicates: 64 bits, ``3 * 12 * 12`` bytes, and if it shows nothing."""

    hash: int
    grid: bytes
    plain: bool


@dataclass(frozen=True, slots=True)
class NearPairs:
    """``pairs (P, 2)``, the lower index first, and the number of bits up to which no pair can have been missed."""

    pairs: Ints
    exact_to: int


def fingerprint(image: Tensor) -> Fingerprint:
    """The fingerprint of ``image (3, H, W)`` uint8; the same for re-saved and resized copies, up to small noise."""
    small = _resize(image, SIDE).astype(np.float64)
    luma = np.tensordot(np.array([0.299, 0.587, 0.114]), small, axes=1)
    bits = dctn(luma, norm="ortho").ravel()[_lowest()] > CLEAR
    grid = _resize(image, GRID)
    spread = grid.reshape(3, -1).max(1).astype(int) - grid.reshape(3, -1).min(1)
    value = int.from_bytes(np.packbits(bits).tobytes(), "big")
    return Fingerprint(hash=value, grid=grid.tobytes(), plain=bool(spread.max() < PLAIN))


def near_pairs(hashes: Hashes, grids: Grids, *, budget: int = BUDGET) -> NearPairs:
    """All pairs whose hashes ``(M,)`` differ in at most `REACH` bits and whose grids ``(M, 432)`` agree.

    With four bands of 16 bits, a pair at most 7 bits apart has one band at most one bit apart, so looking up each band
    and its 16 neighbours finds every pair without comparing all with all. If too many images look alike for
    ``budget`` candidate pairs, the neighbours are left out (exact to 3 bits), then the fullest bands are cut (0 bits).
    """
    bands = [(hashes >> np.uint64(16 * k) & np.uint64(0xFFFF)).astype(np.int64) for k in range(BANDS)]
    flips: tuple[int, ...] = (0, *(1 << bit for bit in range(16)))
    exact_to, most = REACH, len(hashes)
    if sum(_cost(band, flips) for band in bands) > budget:
        flips, exact_to = (0,), BANDS - 1
    if sum(_cost(band, flips) for band in bands) > budget:
        exact_to, most = 0, max(1, budget // (BANDS * len(hashes)))
    found = [_band_pairs(hashes, grids, band=band, flips=flips, most=most) for band in bands]
    return NearPairs(pairs=np.unique(np.concatenate(found), axis=0), exact_to=exact_to)


def groups(pairs: Ints, *, size: int) -> list[list[int]]:
    """The connected sets of two or more of ``size`` things, largest first, from ``pairs (P, 2)``."""
    if not len(pairs):
        return []
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    component = connected_components(graph, directed=False)[1]
    return same_value(component[np.unique(pairs)], members=np.unique(pairs))


def same_value(values: npt.NDArray[np.generic], *, members: Ints | None = None) -> list[list[int]]:
    """The sets of two or more ``members (N,)`` (positions, if left out) that have equal ``values (N,)``."""
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(values[order][1:] != values[order][:-1]) + 1
    names = order if members is None else members[order]
    sets = [part.tolist() for part in np.split(names, ends) if len(part) > 1]
    return sorted(sets, key=lambda part: (-len(part), part[0]))


def _band_pairs(hashes: Hashes, grids: Grids, *, band: Ints, flips: tuple[int, ...], most: int) -> Ints:
    """The pairs found through one band of 16 bits: equal, or one of ``flips`` apart."""
    # Sorted by the band, a bucket is one stretch of memory.
    order = np.argsort(band, kind="stable")
    band, hashes = band[order], hashes[order]
    ends = np.searchsorted(band, np.arange((1 << 16) + 1))
    kept = [np.zeros((0, 2), dtype=np.int64)]
    for flip in flips:
        # Only one side of a flip is asked, or every pair would be found twice.
        rows = np.flatnonzero(band & flip == 0)
        starts = ends[band[rows] ^ flip] if flip else rows + 1
        sizes = np.minimum(ends[(band[rows] ^ flip) + 1] - starts, most)
        for part in _parts(sizes):
            pairs = _close(rows[part], starts[part], sizes[part], hashes=hashes)
            kept.append(_alike(order[pairs], grids))
    return np.sort(np.concatenate(kept), axis=1)


def _parts(sizes: Ints) -> list[slice]:
    """Consecutive slices of rows whose ``sizes`` add up to about `CHUNK` each."""
    chunk = sizes.cumsum() // CHUNK
    edges = [0, *(np.flatnonzero(chunk[1:] != chunk[:-1]) + 1).tolist(), len(sizes)]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]


def _close(rows: Ints, starts: Ints, sizes: Ints, *, hashes: Hashes) -> Ints:
    """``(row, other)`` for the others in ``sizes`` places from ``starts`` whose hashes are close to the row's."""
    shift = np.repeat(starts - sizes.cumsum() + sizes, sizes)
    others = np.arange(len(shift)) + shift
    close = np.flatnonzero(_ones(np.repeat(hashes[rows], sizes) ^ hashes[others]) <= REACH)
    return np.stack([np.repeat(rows, sizes)[close], others[close]], axis=1)


def _alike(pairs: Ints, grids: Grids) -> Ints:
    """Those of ``pairs`` whose grids agree."""
    left, right = (grids[pairs[:, side]].astype(np.int16) for side in (0, 1))
    span = np.minimum(np.ptp(left, axis=1), np.ptp(right, axis=1))
    agreeing: Ints = pairs[np.abs(left - right).max(axis=1) <= np.minimum(SPREAD, CONTRAST * span)]
    return agreeing


def _ones(values: Hashes) -> npt.NDArray[np.uint8]:
    """The number of set bits of each value (``np.bitwise_count`` needs numpy 2)."""
    odd, pair, nibble, byte = (np.uint64(m) for m in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0xFF))
    values = values - (values >> np.uint64(1) & odd)
    values = (values & pair) + (values >> np.uint64(2) & pair)
    values = (values + (values >> np.uint64(4))) & nibble
    values = values + (values >> np.uint64(8))
    values = values + (values >> np.uint64(16))
    return ((values + (values >> np.uint64(32))) & byte).astype(np.uint8)


def _cost(band: Ints, flips: tuple[int, ...]) -> int:
    """How many candidate pairs the band proposes."""
    counts = np.bincount(band, minlength=1 << 16)
    values = np.arange(1 << 16)
    return sum(int(counts @ counts[values ^ flip]) // 2 for flip in flips)


def _resize(image: Tensor, side: int) -> Grids:
    """``(3, side, side)`` uint8, averaged."""
    resized = torch.nn.functional.interpolate(image[None], size=(side, side), mode="bilinear", antialias=True)
    return np.asarray(resized[0].numpy())


@cache
def _lowest() -> Ints:
    """The 64 lowest frequencies after the mean, dealt to the bands in turn so that each band has low and high ones."""
    across, down = np.mgrid[:SIDE, :SIDE]
    order = np.lexsort((across.ravel(), (across + down).ravel()))[1 : BITS + 1]
    return np.concatenate([order[k::BANDS] for k in range(BANDS)])
