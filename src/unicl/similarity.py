"""Two columns of embeddings to scores, and the learned scale that belongs to them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unicl.config import python_file
from unicl.errors import UserError, suggest
from unicl.space import Embedding

Similarity = Callable[[Embedding, Embedding], tuple[Tensor, Tensor]]
"""Some images and some texts to two tables of scores, images by texts: what the images' softmax sees, and the texts'.

It is all that a new similarity has to be: the objective calls it a tile at a time and exchanges rows between processes.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSettings:
    """The multiplier of a similarity (the inverse temperature): start, upper limit, and SigLIP's bias if any.

    CLIP starts at 1/0.07 and keeps it at or below 100 (section 2.5); UniCL's code starts at e without a limit.
    """

    init: float = 1 / 0.07
    max: float | None = 100.0
    bias: float | None = None
    learned: bool = True


class Scale(nn.Module):
    """A positive multiplier learned as its logarithm, with an optional learned bias."""

    def __init__(self, settings: ScaleSettings) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(settings.init)), requires_grad=settings.learned)
        bias = None if settings.bias is None else torch.tensor(float(settings.bias))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=settings.learned)
        self.log_max = None if settings.max is None else math.log(settings.max)

    @property
    def value(self) -> float:
        """The multiplier as a number."""
        return float(self.log_scale.detach().exp())

    def forward(self) -> Tensor:
        """The multiplier, ``()``, with its gradient."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring the parameter back below its limit; done after each step, since a clamp in forward has no gradient."""
        if self.log_max is not None:
            self.log_scale.clamp_(max=self.log_max)


def cosine(images: Embedding, texts: Embedding) -> tuple[Tensor, Tensor]:
    """``(I, T)`` inner products of unit vectors, in float32 or better even under autocast; one table for both ways."""
    scores = _product(images.whole, texts.whole)
    return scores, scores


def find_similarity(name: str) -> Similarity:
    """A similarity by its name in this module, or by ``file.py:function``."""
    path, colon, function = name.rpartition(":")
    known = {"cosine": cosine}
    if colon:
        found: Similarity | None = getattr(python_file(Path(path)), function, None)
    else:
        found = known.get(name)
    if found is None:
        near = suggest(name, known)
        raise UserError(f"unknown similarity {name!r}{near}; give {', '.join(known)} or file.py:function")
    return found


def _product(images_ID: Tensor, texts_TD: Tensor) -> Tensor:
    with torch.autocast(images_ID.device.type, enabled=False):
        images_ID, texts_TD = (x if x.dtype == torch.float64 else x.float() for x in (images_ID, texts_TD))
        return images_ID @ texts_TD.T
