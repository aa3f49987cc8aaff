"""FILIP's late interaction: each part finds its best counterpart, and a score is the mean of what parts find."""

from typing import Literal

import torch
from torch import Tensor

from unicl.similarity.parts import parts_of
from unicl.space import Embedding

Pads = Literal["exclude", "zero"]


def tokenwise(images: Embedding, texts: Embedding, *, pads: Pads = "exclude") -> tuple[Tensor, Tensor]:
    """``(I, T)`` twice: the mean over an image's parts of their best text part, and over a text's parts of theirs.

    FILIP, equations 4 and 5: the images' softmax reads the first table, the texts' the second. Padding finds nothing
    and is never found; ``pads="zero"`` is what Huawei's released code does: a pad counts as a part at right angles to
    all others, so that a maximum over a row with padding is never below 0. A row without a real part scores 0.
    """
    ours, theirs = parts_of(images, "images", of="tokenwise"), parts_of(texts, "texts", of="tokenwise")
    floor = -torch.inf if pads == "exclude" else 0.0
    scores_IPTQ = torch.einsum("ipd,tqd->iptq", ours.values, theirs.values)
    best_IPT = scores_IPTQ.masked_fill(~theirs.mask, floor).amax(3)
    best_ITQ = scores_IPTQ.masked_fill(~ours.mask[:, :, None, None], floor).amax(1)
    return _mean(best_IPT.transpose(1, 2), ours.mask[:, None]), _mean(best_ITQ, theirs.mask)


def _mean(best: Tensor, mask: Tensor) -> Tensor:
    found = torch.where(mask & best.isfinite(), best, 0)
    return found.sum(-1) / mask.sum(-1).clamp(min=1)
