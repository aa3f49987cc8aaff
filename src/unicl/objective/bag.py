"""Prediction of the words of a caption, whatever their order: a linear layer over the tokens on an image's features."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.objective.peers import Shared, nothing, total
from unicl.objective.plan import Tiling
from unicl.objective.words import Words
from unicl.space import NOTHING, Captions, Embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class BagSettings:
    """An image predicts the set of tokens of its caption (Joulin et al. 2016; CLIP, section 2.3 and figure 2).

    ``loss``: "softmax" is cross-entropy in which each of K different tokens has 1 / K (VirTex's token classification);
    "sigmoid" asks for each token by itself (binary cross-entropy). Marks and padding are never among the words.
    """

    kind: Literal["bag"] = "bag"
    name: str = "words"
    weight: float = 1.0
    loss: Literal["softmax", "sigmoid"] = "softmax"


class Bag(nn.Module):
    """A linear layer from F features to V tokens; raises `UserError` if nobody says which tokens there are."""

    marks: Tensor

    def __init__(self, settings: BagSettings, *, features: int, words: Words | None) -> None:
        super().__init__()
        if words is None:
            raise UserError(
                f"the term {settings.name!r} predicts words; say of which tokenizer with words in the recipe"
            )
        self.settings = settings
        self.head = nn.Linear(features, words.size)
        self.register_buffer("marks", torch.tensor(words.marks, dtype=torch.int64), persistent=False)

    def forward(self, shared: Shared, tiling: Tiling = Tiling()) -> Tensor:
        """The mean over the captions that have words."""
        del tiling
        columns, captions = shared.columns, shared.columns.captions
        if captions is None:
            raise UserError(
                f"the term {self.settings.name!r} predicts captions; set data.captions to true in the recipe"
            )
        tokens = _whole(captions)
        words_ML = _distinct(tokens, captions.mask, marks=self.marks)
        spoken = words_ML.any(1)
        everyone = shared.peers.sum(spoken.sum())
        if not everyone:
            return nothing(columns)
        logits = self._logits(columns.images.features[captions.images[spoken]])
        said = logits.gather(1, tokens[spoken]) * words_ML[spoken]
        own = self._losses(logits, said, words=words_ML[spoken].sum(1)).sum()
        return total(own / everyone, peers=shared.peers)

    @torch.no_grad()
    def log_likelihood(self, images: Embedding, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(I, T)``: the mean of log p of the different words of each text ``(T, L)``; minus infinity of none."""
        logits = self._logits(images.features)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        chances = F.logsigmoid(logits) if self.settings.loss == "sigmoid" else logits.log_softmax(1)
        words_TL = _distinct(tokens, mask, marks=self.marks).to(chances)
        sums_TI = F.embedding_bag(tokens, chances.T.contiguous(), mode="sum", per_sample_weights=words_TL)
        counts = words_TL.sum(1)
        return torch.where(counts > 0, sums_TI.T / counts.clamp(min=1), -torch.inf)

    def _logits(self, features: Tensor) -> Tensor:
        return self.head(features.to(self.head.weight.dtype))  # type: ignore[no-any-return]

    def _losses(self, logits: Tensor, said: Tensor, *, words: Tensor) -> Tensor:
        """``(M,)`` from the logits of all tokens and, 0 elsewhere, of the words that were said."""
        if self.settings.loss == "sigmoid":
            return (F.softplus(logits).sum(1) - said.sum(1)) / logits.shape[1]
        return logits.logsumexp(1) - said.sum(1) / words


def _whole(captions: Captions) -> Tensor:
    """The tokens with what is hidden back in its place."""
    return torch.where(captions.wanted == NOTHING, captions.tokens, captions.wanted)


def _distinct(tokens: Tensor, mask: Tensor, *, marks: Tensor) -> Tensor:
    """``(M, L)`` bool: real tokens besides marks, each where it stands first."""
    again = (tokens[:, :, None] == tokens[:, None, :]).tril(-1).any(2)
    return mask & ~torch.isin(tokens, marks) & ~again
