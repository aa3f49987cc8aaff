"""A hidden word of a caption, found again from the picture and from what a language model says of the rest (ICMLM).

Sariyildiz et al. 2020, section 3.3, as remembered from the paper: one model joins places and tokens in a transformer,
the other looks at the picture only, through attention that the caption steers.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.objective.peers import Shared, nothing, total
from unicl.objective.plan import Tiling
from unicl.objective.words import Words
from unicl.space import NOTHING, Captions, Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedSettings:
    """Hidden words of captions, each to be found among all tokens of the tokenizer.

    * ``model``: "tfm" (ICMLM_tfm) or "att_fc" (ICMLM_att-fc): see `Joined` and `Attended`.
    * ``layers``, ``heads``: of the transformer of "tfm"; without ``heads``, each is 64 wide, as in BERT.
    * ``hidden``: the width of the layer before the words of "att_fc", and of its attention; None is the language
      model's.

    Image and text towers give their states as parts (``head: none, unit: false``), texts with the marks around them.
    """

    kind: Literal["masked"] = "masked"
    name: str = "masked"
    weight: float = 1.0
    model: Literal["tfm", "att_fc"] = "tfm"
    layers: int = 1
    heads: int | None = None
    hidden: int | None = None


class Masked(nn.Module):
    """The search for hidden words that `MaskedSettings` describes.

    Raises `UserError` if a tower gives no parts, or the widths and heads do not fit.
    """

    def __init__(self, settings: MaskedSettings, *, places: int, states: int, words: Words | None) -> None:
        super().__init__()
        if not places or not states or words is None:
            raise UserError(
                f"the term {settings.name!r} reads places of an image and tokens of a text, but a tower gives none; "
                "set --set 'image.parts={head: none, unit: false}' and --set 'text.parts={head: none, unit: false}'"
            )
        self.settings = settings
        self.model: Joined | Attended
        if settings.model == "tfm":
            heads = max(1, states // 64) if settings.heads is None else settings.heads
            self.model = Joined(places=places, states=states, size=words.size, layers=settings.layers, heads=heads)
        else:
            hidden = states if settings.hidden is None else settings.hidden
            self.model = Attended(places=places, states=states, size=words.size, hidden=hidden)

    def forward(self, shared: Shared, tiling: Tiling = Tiling()) -> Tensor:
        """The mean of minus the logarithm of what each hidden word was given, over those of all processes."""
        captions = shared.columns.captions
        if captions is None:
            raise UserError(
                f"the term {self.settings.name!r} needs hidden words; set data.captions=true and data.hidden"
            )
        everything = shared.peers.sum((captions.wanted != NOTHING).sum())
        if not everything:
            return nothing(shared.columns)
        own = self._sum(shared, captions, tiling)
        return total(own / everything, peers=shared.peers)

    def scores(self, shared: Shared, captions: Captions) -> tuple[Tensor, Tensor]:
        """The scores of all words for each hidden one, and the hidden ones: of captions in their order, by place."""
        images, texts = shared.columns.images.parts, shared.columns.texts
        assert images is not None
        assert texts is not None
        assert texts.parts is not None
        asking = (captions.wanted != NOTHING).any(1)
        seen, said = images.select(captions.images[asking]), texts.parts.select(captions.texts[asking])
        wanted = captions.wanted[asking, : said.mask.shape[1]]
        rows, at = (wanted != NOTHING).nonzero(as_tuple=True)
        found: Tensor = self.model(seen, said, rows=rows, at=at)
        return found, wanted[rows, at]

    def _sum(self, shared: Shared, captions: Captions, tiling: Tiling) -> Tensor:
        if not (captions.wanted != NOTHING).any():
            return nothing(shared.columns)
        device = captions.wanted.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=tiling.operands == "bf16"):
            scores, wanted = self.scores(shared, captions)
            return F.cross_entropy(scores, wanted, reduction="sum")


class Joined(nn.Module):
    """ICMLM_tfm: places, brought to the width of tokens, and tokens in one transformer; read at the hidden token.

    Raises `UserError` if the tokens' width cannot be cut into the heads.
    """

    def __init__(self, *, places: int, states: int, size: int, layers: int, heads: int) -> None:
        super().__init__()
        if states % heads:
            raise UserError(
                f"{states} numbers of a token cannot be cut into {heads} heads; set the term's heads to fit"
            )
        self.project = nn.Linear(places, states)
        # Without dropout, a step in chunks has the numbers of a whole one.
        layer = nn.TransformerEncoderLayer(states, heads, 4 * states, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.words = nn.Linear(states, size)

    def forward(self, places: Parts, tokens: Parts, *, rows: Tensor, at: Tensor) -> Tensor:
        """Scores of all words at token ``at`` of caption ``rows``, each ``(W,)``: ``(W, words)``."""
        dtype = self.project.weight.dtype
        both = torch.cat([self.project(places.values.to(dtype)), tokens.values.to(dtype)], dim=1)
        padding = ~torch.cat([places.mask, tokens.mask], dim=1)
        states = self.encoder(both, src_key_padding_mask=padding)
        scores: Tensor = self.words(states[rows, places.mask.shape[1] + at])
        return scores


class Attended(nn.Module):
    """ICMLM_att-fc: the caption says where to look, and what is seen there says the word.

    A place counts as much as its best token: ``softmax`` over places of ``max`` over tokens of
    ``<LN(place) A, LN(token) B> / sqrt(hidden)``. Nothing else of a text reaches the scores.
    """

    def __init__(self, *, places: int, states: int, size: int, hidden: int) -> None:
        super().__init__()
        self.place_norm, self.token_norm = nn.LayerNorm(places), nn.LayerNorm(states)
        self.place, self.token = (nn.Linear(width, hidden, bias=False) for width in (places, states))
        self.dense, self.words = nn.Linear(places, hidden), nn.Linear(hidden, size)

    def attention(self, places: Parts, tokens: Parts) -> Tensor:
        """``(M, P)``: how much of each place of its picture a caption looks at; 1 in all."""
        dtype = self.place.weight.dtype
        keys_MPD = self.place(self.place_norm(places.values.to(dtype)))
        queries_MQD = self.token(self.token_norm(tokens.values.to(dtype)))
        scores_MPQ: Tensor = keys_MPD @ queries_MQD.mT * keys_MPD.shape[-1] ** -0.5
        best_MP = scores_MPQ.masked_fill(~tokens.mask[:, None], float("-inf")).amax(2)
        return best_MP.masked_fill(~places.mask, float("-inf")).softmax(1)

    def forward(self, places: Parts, tokens: Parts, *, rows: Tensor, at: Tensor) -> Tensor:
        """Scores of all words for each of ``rows`` (W of M captions), whatever token is asked for: ``(W, words)``."""
        del at
        seen_MF = (self.attention(places, tokens)[..., None] * places.values).sum(1)
        scores: Tensor = self.words(torch.relu(self.dense(seen_MF.to(self.dense.weight.dtype))))
        return scores[rows]
