"""Words of a text that are hidden, to be found again."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unicl.space import NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class HideWords:
    """Hides a share of a text's tokens, at least one and never a mark (VirTex's code, masked language modelling).

    ``ceil(share * words)`` places are drawn. ``masked`` of them show the ``mask`` and are to be found; ``replaced``
    show any other word and the rest stay, and neither is asked for. A single one is always masked. ``size`` is that of
    the vocabulary and ``marks`` its entries that are no words.
    """

    size: int
    mask: int
    marks: tuple[int, ...]
    share: float = 0.15
    masked: float = 0.85
    replaced: float = 0.10

    def __call__(self, text: str, tokens: Tensor, /, *, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """As in `unicl.data.collate.Hide`; a text without a word stays as it is."""
        del text
        shown, wanted = tokens.clone(), torch.full_like(tokens, NOTHING)
        words = [place for place, token in enumerate(tokens.tolist()) if token not in self.marks]
        number = math.ceil(self.share * len(words))
        for place in rng.choice(words, size=number, replace=False).tolist() if words else ():
            drawn = 0.0 if number == 1 else rng.random()
            if drawn < self.masked:
                wanted[place], shown[place] = tokens[place], self.mask
            elif drawn < self.masked + self.replaced:
                shown[place] = self._other(rng)
        return shown, wanted

    def _other(self, rng: np.random.Generator) -> int:
        """Any word, as likely as any other."""
        number = int(rng.integers(self.size - len(self.marks)))
        for mark in sorted(self.marks):
            number += number >= mark
        return number
