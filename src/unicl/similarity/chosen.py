"""FILIP's choice of parts: before anything travels, each row keeps those of its parts that match best."""

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from unicl.similarity.parts import parts_of
from unicl.space import Embedding, Parts

SIDE: Final = 1 << 10
"""Parts of either column that are multiplied at once."""


def chosen(images: Embedding, texts: Embedding, *, share: float) -> tuple[Embedding, Embedding]:
    """Both columns with a share of each row's real parts: those with the best counterpart in the other column.

    FILIP, section 3.1.1 (25 %): how good a part is, is its highest product with any real part of any row of the other
    column. A row of n real parts keeps ``share`` times n of them, rounded up, in their order; 1.0 changes nothing. The
    choice itself has no gradient. It sees only the rows that it is given, which in training are those of one process:
    by the paper's design, two processes then choose differently from one.
    """
    if share == 1.0:
        return images, texts
    ours, theirs = parts_of(images, "images", of="part_share"), parts_of(texts, "texts", of="part_share")
    with torch.no_grad(), torch.autocast(ours.values.device.type, enabled=False):
        best = _best(ours, theirs)
    first, second = (_kept(parts, each, share=share) for parts, each in zip((ours, theirs), best, strict=True))
    return replace(images, parts=first), replace(texts, parts=second)


def _best(images: Parts, texts: Parts) -> tuple[Tensor, Tensor]:
    """``(I, P)`` and ``(T, Q)``: the highest product of each real part with any real part of the other column."""
    left, right = (_wide(parts.values)[parts.mask] for parts in (images, texts))
    lowest = torch.finfo(left.dtype).min
    by_image, by_text = left.new_full((len(left),), lowest), right.new_full((len(right),), lowest)
    for start in range(0, len(left), SIDE):
        own = slice(start, start + SIDE)
        for first in range(0, len(right), SIDE):
            other = slice(first, first + SIDE)
            products = left[own] @ right[other].T
            by_image[own] = torch.maximum(by_image[own], products.amax(1))
            by_text[other] = torch.maximum(by_text[other], products.amax(0))
    return _at(images, by_image), _at(texts, by_text)


def _at(parts: Parts, values: Tensor) -> Tensor:
    """One number for each real part in its place, and less than any number for padding."""
    return values.new_full(parts.mask.shape, -torch.inf).masked_scatter_(parts.mask, values)


def _kept(parts: Parts, best: Tensor, *, share: float) -> Parts:
    if not len(parts.mask):
        return parts
    real = parts.mask.sum(1, keepdim=True)
    # A product such as 0.07 * 100 is a little more than the whole number that it means.
    wanted = (real.double() * share - 1e-9).ceil().clamp(min=1).minimum(real)
    size = max(int(wanted.max()), 1)
    mask = torch.arange(size, device=real.device) < wanted
    places = (
        best.argsort(dim=1, descending=True, stable=True)[:, :size].masked_fill(~mask, best.shape[1]).sort(1).values
    )
    at = places.clamp(max=best.shape[1] - 1)[..., None].expand(-1, -1, parts.values.shape[2])
    return Parts(values=parts.values.gather(1, at), mask=mask)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
