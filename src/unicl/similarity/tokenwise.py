"""FILIP's late interaction: each part finds its best counterpart, and a score is the mean of what parts find.

Products of all parts live only while their maxima are taken. What the backward pass needs besides the parts is which
counterpart each part found, one small whole number each: a score's gradient goes to as many pairs of parts as there
are parts, so that it is a weighted sum of looked-up rows and no matrix product.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from unicl.similarity.parts import parts_of
from unicl.space import Embedding, Parts

Pads = Literal["exclude", "zero"]


def tokenwise(images: Embedding, texts: Embedding, *, pads: Pads = "exclude") -> tuple[Tensor, Tensor]:
    """``(I, T)`` twice: the mean over an image's parts of their best text part, and over a text's parts of theirs.

    FILIP, equations 4 and 5: the images' softmax reads the first table, the texts' the second. Padding finds nothing
    and is never found; ``pads="zero"`` is what Huawei's released code does: a pad counts as a part at right angles to
    all others, so that a maximum over a row with padding is never below 0. A row without a real part scores 0.

    Sums are float32 or better whatever the parts are. Of equally good counterparts one gets the gradient. Memory
    beside the tables: 4 bytes for each pair of parts while scoring, 1 byte for each part of each pair of rows after.
    """
    ours, theirs = (
        _trimmed(parts_of(each, column, of="tokenwise"), pads=pads)
        for each, column in ((images, "images"), (texts, "texts"))
    )
    with torch.autocast(ours.values.device.type, enabled=False):
        tables: tuple[Tensor, Tensor] = _Tokenwise.apply(
            ours.values, theirs.values, ours.mask, theirs.mask, pads == "zero", torch.is_grad_enabled()
        )
    return tables


class _Tokenwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, image_mask: Tensor, text_mask: Tensor, zero: bool, learns: bool
    ) -> tuple[Tensor, Tensor]:
        left, right = _Side(images, image_mask, zero=zero), _Side(texts, text_mask, zero=zero)
        # Words outside of rows: both maxima are then over a dimension that is not the innermost, which is faster.
        scores_IPQT = (left.rows() @ right.turned_rows().T).view(*left.shape, *reversed(right.shape))
        best_IPT, best_IQT = scores_IPQT.amax(2), scores_IPQT.amax(1)
        if learns and any(ctx.needs_input_grad):
            ctx.zero = zero
            places_IQT = _places(scores_IPQT, best_IQT, dim=1)
            places_IPT = _places(scores_IPQT, best_IPT, dim=2, spoil=True)
            ctx.save_for_backward(images, texts, image_mask, text_mask, places_IPT, places_IQT)
        by_image = torch.einsum("ip,ipt->it", left.shares, best_IPT)
        return by_image, (best_IQT * right.shares.T).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        images, texts, image_mask, text_mask, places_IPT, places_IQT = ctx.saved_tensors
        if not grads[0].numel():
            return torch.zeros_like(images), torch.zeros_like(texts), None, None, None, None
        left, right = _Side(images, image_mask, zero=ctx.zero), _Side(texts, text_mask, zero=ctx.zero)
        image_rows, text_rows = left.rows(), right.turned_rows()
        of_images, of_texts = _sums(
            image_rows,
            text_rows,
            found=_numbers(places_IPT, step=len(texts), start=torch.arange(len(texts))).flatten(0, 1),
            weights=(left.shares[:, :, None] * grads[0][:, None]).flatten(0, 1),
        )
        more_texts, more_images = _sums(
            text_rows,
            image_rows,
            found=_numbers(places_IQT, step=1, start=torch.arange(len(images))[:, None, None] * left.shape[1])
            .permute(1, 2, 0)
            .flatten(0, 1),
            weights=(right.shares.T * grads[1][:, None]).permute(1, 2, 0).flatten(0, 1),
        )
        of_images += more_images
        of_texts += more_texts
        turned = of_texts.view(*reversed(right.shape), -1).transpose(0, 1)
        return left.own(of_images.view(*left.shape, -1)), right.own(turned), None, None, None, None


class _Side:
    """The parts ``(N, P, D)`` of one side, with padding that cannot be found, or that is found as 0 (``zero``)."""

    def __init__(self, values: Tensor, mask: Tensor, *, zero: bool) -> None:
        wide = torch.promote_types(values.dtype, torch.float32)
        self.values, self.mask, self.zero = values.detach().to(wide), mask, zero
        self.shape = mask.shape
        self.shares = mask.to(wide) / mask.sum(1, keepdim=True).clamp(min=1)
        self.dtype = values.dtype
        self.full = bool(mask.all())
        # The first real part: a copy of it can stand where padding is, and no maximum changes.
        self.first = mask.to(torch.uint8).argmax(1)

    def filled(self) -> Tensor:
        if self.full:
            return self.values
        real = self.mask[..., None]
        if self.zero:
            return self.values.masked_fill(~real, 0)
        some = torch.arange(len(self.mask), device=self.mask.device)
        copies = self.values[some, self.first][:, None].masked_fill(~self.mask.any(1)[:, None, None], 0)
        return torch.where(real, self.values, copies)

    def rows(self) -> Tensor:
        """``(N P, D)``."""
        return self.filled().flatten(0, 1)

    def turned_rows(self) -> Tensor:
        """``(P N, D)``."""
        return self.filled().transpose(0, 1).flatten(0, 1)

    def own(self, gradient: Tensor) -> Tensor:
        """The gradient ``(N, P, D)`` of what was filled in, for the values."""
        if self.full:
            return gradient.to(self.dtype)
        kept = gradient.masked_fill(~self.mask[..., None], 0)
        if not self.zero:
            some = self.mask.any(1).nonzero()[:, 0]
            copies = (gradient - kept)[some].sum(1)
            kept[some, self.first[some]] += copies
        return kept.to(self.dtype)


def _trimmed(parts: Parts, *, pads: Pads) -> Parts:
    """Without the places behind the last real part of all rows; one stays where padding counts."""
    parts = parts.padded(1)
    places = torch.arange(1, parts.mask.shape[1] + 1, device=parts.mask.device)
    longest = int((parts.mask * places).max()) if len(parts.mask) else 1
    size = max(longest + (pads == "zero"), 1)
    return replace(parts, values=parts.values[:, :size], mask=parts.mask[:, :size])


def _places(scores: Tensor, best: Tensor, *, dim: int, spoil: bool = False) -> Tensor:
    """Where along ``dim`` the best scores are, the last of equals; ``spoil`` writes over the scores.

    torch's own maximum with places takes twice as long on a processor as this and the plain maximum together.
    """
    size, best = scores.shape[dim], best.unsqueeze(dim)
    small = next(t for t in (torch.uint8, torch.int16, torch.int32) if size - 1 <= torch.iinfo(t).max)
    hit = scores.ge_(best) if spoil else (scores >= best).view(torch.uint8)
    hit = hit.to(small) if not spoil and small != torch.uint8 else hit
    numbers = torch.arange(size, dtype=hit.dtype, device=hit.device).view(-1, *(1,) * (scores.ndim - 1 - dim))
    return hit.mul_(numbers).amax(dim).to(small)


def _numbers(places: Tensor, *, step: int, start: Tensor) -> Tensor:
    return places.to(torch.int32).mul_(step).add_(start.to(places.device, torch.int32))


def _sums(finding: Tensor, known: Tensor, *, found: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """What ``n`` rows that each found ``m`` of the known ones add up to, ``(n, D)``, and these of them, ``(k, D)``.

    ``found (n, m)`` are numbers of known rows. Gathering is three times as fast as products with a mostly empty
    matrix on a processor (docs/log.md).
    """
    found, weights = found.contiguous(), weights.to(known.dtype).contiguous()
    finders = F.embedding_bag(found, known, per_sample_weights=weights, mode="sum")
    sorted_, order = found.flatten().sort()
    starts = torch.searchsorted(sorted_, torch.arange(len(known) + 1, device=found.device, dtype=found.dtype))
    known_sums = F.embedding_bag(
        (order // found.shape[1]).to(found.dtype),
        finding,
        starts.to(found.dtype),
        per_sample_weights=weights.flatten()[order],
        mode="sum",
        include_last_offset=True,
    )
    return finders, known_sums
