"""Captions predicted from the places of an image: word by word, in both directions, or hidden words (VirTex)."""

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
from unicl.towers.decoder import Decoder, Direction, turned


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSettings:
    """A decoder that reads the places of an image and predicts its caption (VirTex, section 3).

    * ``task``: "captioning" predicts every word from those before it; "bicaptioning" does so in both directions, with
      two transformers that share everything else; "masked" finds hidden words from all others.
    * ``width``, ``layers``, ``heads``, ``dropout``: of the decoder; without ``heads``, each is 64 wide.

    The decoder reads tokens as wide as the tokenizer cuts them, and places as the image tower gives them: it has the
    projection of places itself, so that ``image.parts`` are best without a head.
    """

    kind: Literal["caption"] = "caption"
    name: str = "captions"
    weight: float = 1.0
    task: Literal["captioning", "bicaptioning", "masked"] = "bicaptioning"
    width: int = 256
    layers: int = 1
    heads: int | None = None
    dropout: float = 0.1


class Caption(nn.Module):
    """The prediction of captions that `CaptionSettings` describes.

    Raises `UserError` if the model has no tokens or no places of images, or texts have no mark where one is needed.
    """

    def __init__(self, settings: CaptionSettings, *, places: int, words: Words | None) -> None:
        super().__init__()
        self.settings = settings
        self.words = _known(words, name=settings.name)
        if not places:
            raise UserError(
                f"the term {settings.name!r} reads the places of an image, but the image tower gives none; set "
                "--set 'image.parts={head: none, unit: false}'"
            )
        if settings.task != "masked" and -1 in (self.words.start, self.words.end):
            raise UserError(
                f"the term {settings.name!r} writes texts between two marks, but the tokenizer has not both; take "
                "another, such as tokenizer=train"
            )
        self.decoder = Decoder(
            size=self.words.size,
            pad=self.words.pad,
            features=places,
            width=settings.width,
            context=self.words.context,
            layers=settings.layers,
            heads=settings.heads,
            dropout=settings.dropout,
            causal=settings.task != "masked",
            both=settings.task == "bicaptioning",
        )

    def forward(self, shared: Shared, tiling: Tiling = Tiling()) -> Tensor:
        """The mean over all words of all captions, added up over both directions; over hidden words for "masked"."""
        captions = _captions(shared, name=self.settings.name)
        wanted = captions.wanted != NOTHING if self.settings.task == "masked" else captions.mask[:, 1:]
        everything = shared.peers.sum(wanted.sum())
        if not everything:
            return nothing(shared.columns)
        own = self._sum(captions, self.places(shared, captions), tiling) if wanted.any() else nothing(shared.columns)
        return total(own / everything, peers=shared.peers)

    def places(self, shared: Shared, captions: Captions) -> Parts:
        """``(M, P, F)``: the places of each caption's image."""
        parts = shared.columns.images.parts
        assert parts is not None
        return parts.select(captions.images)

    def _sum(self, captions: Captions, places: Parts, tiling: Tiling) -> Tensor:
        device = places.values.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=tiling.operands == "bf16"):
            if self.settings.task == "masked":
                return self.hidden(captions, places)
            directions: tuple[Direction, ...] = ("forward", "backward")
            asked = directions if self.settings.task == "bicaptioning" else directions[:1]
            return torch.stack([self.written(captions, places, direction=each) for each in asked]).sum()

    def written(self, captions: Captions, places: Parts, *, direction: Direction = "forward") -> Tensor:
        """The sum over all words of minus the logarithm of what each was given, from those before it."""
        tokens, mask = captions.tokens, captions.mask
        if direction == "backward":
            tokens = turned(tokens, mask)
        states = self.decoder.states(tokens[:, :-1], mask[:, :-1], places, direction=direction)
        return self._surprise(states[mask[:, 1:]], tokens[:, 1:][mask[:, 1:]])

    def hidden(self, captions: Captions, places: Parts) -> Tensor:
        """The same sum over hidden words, from all that is shown."""
        asked = captions.wanted != NOTHING
        states = self.decoder.states(captions.tokens, captions.mask, places)
        return self._surprise(states[asked], captions.wanted[asked])

    def _surprise(self, states: Tensor, wanted: Tensor) -> Tensor:
        # Words that nobody asks for have no scores: these are the largest thing here.
        return F.cross_entropy(self.decoder.scores(states), wanted, reduction="sum")


def _known(words: Words | None, *, name: str) -> Words:
    if words is None:
        raise UserError(f"the term {name!r} predicts words, but nobody says of which tokens; set words in the recipe")
    return words


def _captions(shared: Shared, *, name: str) -> Captions:
    captions = shared.columns.captions
    if captions is None:
        raise UserError(f"the term {name!r} needs to know which caption is an image's; set data.captions=true")
    return captions
