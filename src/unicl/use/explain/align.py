"""Which places of a picture belong to which words, in models that compare parts; without gradients.

FILIP, section 4.4 and figure 4: products of patches and tokens. GLoRIA, section 3.2: the places that a word looks at.
"""

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.towers.image import ImageTower


def products(places_PD: Tensor, words_QD: Tensor) -> Tensor:
    """``(Q, P)``: the inner product of each part of a text with each part of a picture (FILIP, equation 3)."""
    return words_QD @ places_PD.T


def attention(places_PD: Tensor, words_QD: Tensor, *, sharpness: float, words_first: bool) -> Tensor:
    """``(Q, P)``: how much each word looks at each place; a row sums to 1 (see `unicl.similarity.attended`)."""
    scores_QP = products(places_PD, words_QD)
    if words_first:
        scores_QP = scores_QP.softmax(0)
    return (sharpness * scores_QP).softmax(1)


def agreement(attention_QP: Tensor, places_PD: Tensor, words_QD: Tensor) -> Tensor:
    """``(Q,)``: the cosine of each word with the mean of the places that it looks at."""
    return F.cosine_similarity(attention_QP @ places_PD, words_QD, dim=1)


@torch.no_grad()
def reduction(tower: ImageTower, pixels: Tensor) -> Tensor | None:
    """``(K, P)``: how much each place counts in each part that is compared; None if places are compared themselves.

    ``pixels (1, 3, S, S)``. Wukong compares K learned means of the places.
    """
    parts, states = tower.parts, tower.look(pixels).parts
    if parts is None or parts.reducer is None or states is None:
        return None
    projected = (parts.head if parts.owns_head else tower.head)(states.values)
    return parts.reducer.attention(projected)[0].float().cpu()


def spread(matches_QK: Tensor, reduction_KP: Tensor) -> Tensor:
    """``(Q, P)``: the match of a place is the mean of those of the parts that look at it, each by how much it does."""
    return matches_QK @ (reduction_KP / reduction_KP.sum(0, keepdim=True).clamp(min=1e-12))


def passed(attention_QK: Tensor, reduction_KP: Tensor) -> Tensor:
    """``(Q, P)``: attention to parts as attention to the places that they are means of; rows still sum to 1."""
    return attention_QK @ reduction_KP


def grid(values_QP: Tensor, *, first: int = 0) -> Tensor:
    """``(Q, h, w)``: places row by row, as they lie on the picture; ``first`` parts are none (a class token).

    Raises `UserError` if the places fill no square.
    """
    values = values_QP[:, first:]
    side = isqrt(values.shape[1])
    if side * side != values.shape[1] or side == 0:
        raise UserError(
            f"this model's {values.shape[1]} places fill no square, so they cannot be shown on a picture; take an "
            "image tower with a square map or square patches"
        )
    return values.reshape(len(values), side, side)
