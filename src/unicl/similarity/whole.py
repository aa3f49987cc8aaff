"""Whole embeddings compared."""

import torch
from torch import Tensor

from unicl.space import Embedding


def cosine(images: Embedding, texts: Embedding) -> tuple[Tensor, Tensor]:
    """``(I, T)`` inner products of unit vectors, in float32 or better even under autocast; one table for both ways."""
    scores = _product(images.whole, texts.whole)
    return scores, scores


def _product(images_ID: Tensor, texts_TD: Tensor) -> Tensor:
    with torch.autocast(images_ID.device.type, enabled=False):
        images_ID, texts_TD = (x if x.dtype == torch.float64 else x.float() for x in (images_ID, texts_TD))
        return images_ID @ texts_TD.T
