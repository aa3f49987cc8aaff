"""MixUp and CutMix of neighbours in a batch, pixels and keys alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from unicl.data.collate import Drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Strengths (the alpha of a Beta distribution) of MixUp and CutMix; 0 switches one off, with both one is drawn."""

    mixup: float = 0.0
    cutmix: float = 0.0


def mix(drawn: Sequence[Drawn | None], settings: Mix, *, rng: np.random.Generator) -> list[Drawn | None]:
    """Mix each image with its neighbour; the order of a batch is random, hence so are the pairs.

    Zhang et al. 2018 (MixUp) and Yun et al. 2019 (CutMix), one share a batch. Images without a neighbour stay.
    """
    alphas = [("mixup", settings.mixup), ("cutmix", settings.cutmix)]
    kinds = [(kind, alpha) for kind, alpha in alphas if alpha > 0]
    if not kinds:
        return list(drawn)
    kind, alpha = kinds[rng.integers(len(kinds))]
    share, corner = rng.beta(alpha, alpha), rng.random(2)
    return [_with(drawn, row, kind=kind, share=share, corner=corner) for row in range(len(drawn))]


def _with(drawn: Sequence[Drawn | None], row: int, *, kind: str, share: float, corner: np.ndarray) -> Drawn | None:
    own, partner = drawn[row], drawn[row ^ 1] if (row ^ 1) < len(drawn) else None
    if own is None or partner is None or own.image is None or partner.image is None:
        return own
    if kind == "mixup":
        mixed = own.image.float().mul(share).add(partner.image.float(), alpha=1 - share)
        image = mixed if own.image.is_floating_point() else mixed.round().to(own.image.dtype)
    else:
        image, share = _cut(own.image, partner.image, share=share, corner=corner)
    return replace(own, image=image, partner=partner, share=float(share))


def _cut(image: Tensor, other: Tensor, *, share: float, corner: np.ndarray) -> tuple[Tensor, float]:
    """The image with a box of the other, whose centre is at ``corner`` (in shares of the sides); and what is left."""
    height, width = image.shape[-2:]
    half = np.sqrt(1 - share) / 2
    (top, bottom), (left, right) = (
        (int(np.clip((c - half) * side, 0, side)), int(np.clip((c + half) * side, 0, side)))
        for c, side in zip(corner, (height, width), strict=True)
    )
    image = image.clone()
    image[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return image, 1 - (bottom - top) * (right - left) / (height * width)
