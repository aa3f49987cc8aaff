"""Scores that are the same number on every machine, in every tile and in any order of adding up."""

from collections.abc import Iterator

import torch
from torch import Tensor

from unicl.errors import UserError

BITS = 25


def grid(vectors_ND: Tensor, *, bits: int = BITS) -> Tensor:
    """Unit vectors as whole multiples of ``2**-bits``, in float64, so that every inner product of two is exact.

    By Cauchy and Schwarz no partial sum passes ``4**bits``, which float64 holds exactly up to 26 bits. So equal
    vectors tie, ranks do not depend on tiles or threads, and the rounding, ``2**-26`` a component, is float32's own.
    """
    return torch.round(vectors_ND.double() * 2**bits)


def cosines(left_ND: Tensor, right_MD: Tensor, *, bits: int = BITS) -> Tensor:
    """``(N, M)`` exact cosines of two grids, in float64."""
    return (left_ND @ right_MD.T) * 4.0**-bits


def tiles(size: int, *, tile: int) -> Iterator[slice]:
    """Consecutive slices of at most ``tile`` that cover ``size``."""
    for start in range(0, size, tile):
        yield slice(start, min(start + tile, size))


def require_finite(vectors: Tensor, *, what: str) -> Tensor:
    """The same vectors; raises `UserError` if one holds a NaN or an infinity, since every rank would be a lie."""
    bad = int((~vectors.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(vectors)} {what} are not finite numbers; the model's weights have diverged: "
            "evaluate an earlier checkpoint"
        )
    return vectors
