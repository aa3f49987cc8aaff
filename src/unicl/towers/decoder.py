"""A decoder: texts token by token from the places of pictures (VirTex, section 3; the decoder of a transformer).

Its layers are transformers' (BertGeneration with cross-attention: norm behind each step, GELU). Two things of the paper
are not in transformers' model and are here: what stands at a padded place is 0 after the norm of the embeddings, whose
epsilon is another than the layers', and dropout also follows the GELU, as in torch's own layers.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.space import Parts

Direction = Literal["forward", "backward"]
SPREAD: Final = 0.02
"""The standard deviation of every matrix at the start (VirTex's code)."""
EMBEDDING_EPS: Final = 1e-8
LAYER_EPS: Final = 1e-5


class Past:
    """What a decoder keeps of texts that it is writing: the keys and values of their tokens and of their pictures.

    It changes with every `Decoder.step`.
    """

    def __init__(self, places: Parts) -> None:
        import transformers

        caches = (transformers.DynamicCache(), transformers.DynamicCache())
        self.cache: Final[Any] = transformers.EncoderDecoderCache(*caches)
        self.places = places
        self.length = 0

    def take(self, rows: Tensor) -> None:
        """Go on with these rows ``(M',)``, in this order, some left out and some several times (a beam's survivors)."""
        self.cache.reorder_cache(rows)
        self.places = self.places.select(rows)


class Decoder(nn.Module):
    """Words one by one from the places of a picture: projection, embedding, transformer, output tied to the embedding.

    * ``size``: entries of the vocabulary; ``pad``: the one that fills up; ``context``: the longest text in tokens.
    * ``features``: the width of places; ``width``: of the decoder, whose heads are 64 wide unless ``heads`` is given.
    * ``causal``: whether a token sees only those before it; else it sees all (masked words).
    * ``both``: a second transformer reads texts from their end. It starts as a copy of the first, and everything else
      is one for both (VirTex, section 3).

    Raises `UserError` for a width that cannot be cut into heads.
    """

    def __init__(
        self,
        *,
        size: int,
        pad: int,
        features: int,
        width: int,
        context: int,
        layers: int = 1,
        heads: int | None = None,
        dropout: float = 0.1,
        causal: bool = True,
        both: bool = False,
    ) -> None:
        super().__init__()
        number = max(width // 64, 1) if heads is None else heads
        if width % number:
            raise UserError(
                f"a decoder of width {width} cannot be cut into {number} heads; take a width that is a multiple of "
                f"{64 if heads is None else number}"
            )
        self.size: Final = size
        self.width: Final = width
        self.context: Final = context
        self.causal: Final = causal
        self.projection: Final = nn.Linear(features, width)
        self.embedding: Final = WordsInPlaces(size=size, pad=pad, width=width, context=context, dropout=dropout)
        self.transformer: Final = _transformer(width=width, layers=layers, heads=number, dropout=dropout)
        self.backward_transformer: Final = deepcopy(self.transformer) if both else None
        self.bias: Final = nn.Parameter(torch.zeros(size))
        nn.init.normal_(self.projection.weight, std=SPREAD)
        nn.init.zeros_(self.projection.bias)

    def forward(self, tokens: Tensor, mask: Tensor, places: Parts, *, direction: Direction = "forward") -> Tensor:
        """``(M, L, size)``: scores of the token behind each one, or without ``causal`` of the one that is hidden there.

        ``tokens (M, L)`` and ``mask (M, L)`` bool, true where a token is real; padding is right. ``places`` are those
        of each text's picture, ``(M, P, features)``. For "backward", texts are turned around (`turned`).
        """
        return self.scores(self.states(tokens, mask, places, direction=direction))

    def states(self, tokens: Tensor, mask: Tensor, places: Parts, *, direction: Direction = "forward") -> Tensor:
        """``(M, L, width)``: what the scores are made of."""
        if tokens.shape[1] > self.context:
            raise UserError(f"a text has {tokens.shape[1]} tokens, but this decoder was made for {self.context}")
        seen, places = _seen(mask, causal=self.causal), self._projected(places)
        return self._read(self.embedding(tokens, mask), seen=seen, places=places, direction=direction)

    def scores(self, states: Tensor) -> Tensor:
        """``(..., size)``: the product with the embedding of each word, and its bias."""
        return F.linear(states, self.embedding.words.weight, self.bias)

    def begin(self, places: Parts) -> Past:
        """Texts to be written, one for each row of places, with nothing written yet."""
        return Past(self._projected(places))

    def step(self, tokens: Tensor, past: Past, *, direction: Direction = "forward") -> Tensor:
        """``(M, size)``: scores of the token behind ``tokens (M,)``, which stand behind all that were given before.

        Raises `UserError` where a text gets longer than the context.
        """
        if past.length >= self.context:
            raise UserError(f"this decoder writes texts of {self.context} tokens at most")
        embedded = self.embedding(tokens[:, None], torch.ones_like(tokens[:, None], dtype=torch.bool), at=past.length)
        past.length += 1
        states = self._read(embedded, seen=None, places=past.places, direction=direction, cache=past.cache)
        return self.scores(states[:, 0])

    def _projected(self, places: Parts) -> Parts:
        return replace(places, values=self.projection(places.values.to(self.projection.weight.dtype)))

    def _read(
        self, embedded: Tensor, *, seen: Tensor | None, places: Parts, direction: Direction, cache: Any = None
    ) -> Tensor:
        transformer = self.transformer if direction == "forward" else self.backward_transformer
        if transformer is None:
            raise UserError("this decoder was made for one direction; ask for both to read texts from their end")
        made = transformer(
            embedded,
            attention_mask=seen,
            encoder_hidden_states=places.values,
            encoder_attention_mask=places.mask[:, None, None],
            past_key_values=cache,
        )
        states: Tensor = made.last_hidden_state
        return states


class WordsInPlaces(nn.Module):
    """Words and their places in the text, added up and normed; 0 at padded places (VirTex's code)."""

    def __init__(self, *, size: int, pad: int, width: int, context: int, dropout: float) -> None:
        super().__init__()
        self.words: Final = nn.Embedding(size, width)
        self.places: Final = nn.Embedding(context, width)
        self.norm: Final = nn.LayerNorm(width, eps=EMBEDDING_EPS)
        self.dropout: Final = nn.Dropout(dropout)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=SPREAD)
        with torch.no_grad():
            # It still learns through the output, where it is a word like all others.
            self.words.weight[pad] = 0

    def forward(self, tokens: Tensor, mask: Tensor, *, at: int = 0) -> Tensor:
        """``(M, L, width)`` of tokens that stand from place ``at`` on."""
        places = torch.arange(at, at + tokens.shape[1], device=tokens.device)
        states: Tensor = self.dropout(self.norm(self.words(tokens) + self.places(places)))
        return states * mask[..., None].to(states)


def turned(tokens: Tensor, mask: Tensor) -> Tensor:
    """``(M, L)``: each text from its end to its start, marks included; padding stays right (VirTex, section 3)."""
    last = mask.sum(1, keepdim=True) - 1
    numbers = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens.gather(1, torch.where(mask, last - numbers, numbers))


def _seen(mask: Tensor, *, causal: bool) -> Tensor:
    """``(M, 1, L, L)`` or ``(M, 1, 1, L)`` bool: which tokens each token sees.

    The first is always seen, so that no row is without any, whose softmax would not be a number.
    """
    numbers = torch.arange(mask.shape[1], device=mask.device)
    real = (mask | (numbers == 0))[:, None, None]
    return real & (numbers <= numbers[:, None]) if causal else real


def _transformer(*, width: int, layers: int, heads: int, dropout: float) -> nn.Module:
    import transformers

    sizes: Mapping[str, int] = {
        "vocab_size": 1,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 1,
    }
    config = transformers.BertGenerationConfig(
        **sizes,
        hidden_act="gelu",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=SPREAD,
        layer_norm_eps=LAYER_EPS,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        is_decoder=True,
        add_cross_attention=True,
    )
    made: nn.Module = transformers.BertGenerationEncoder(config).encoder
    for layer in made.get_submodule("layer").children():
        # As in torch's layers, what the GELU gives is dropped too.
        layer.get_submodule("intermediate").intermediate_act_fn = nn.Sequential(nn.GELU(), nn.Dropout(dropout))
    return made
