"""Parts of an embedding: patches of a picture, tokens and words of a text, each with a vector of its own.

A tower that is asked for parts gives them beside its whole vector (FILIP, section 3.1; GLoRIA, section 3.2). Settings
say which states of the backbone are parts, and how each is brought to the shared width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from unicl.data.pieces import Pieces
from unicl.data.text import Tokenizer
from unicl.errors import UserError
from unicl.space import Embedding, Parts
from unicl.towers.heads import HeadKind, make_head
from unicl.towers.reduce import GROUPS, Reducer

Marks = Literal["both", "start", "none"]
_OWN: Final = "parts."


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParts:
    """Which places of a picture are parts.

    * ``stage``: None are the last states (patches of a transformer, places of the last map); a number is a map of
      timm's ``feature_info``, from 0 (GLoRIA reads 3, a ResNet's third stage).
    * ``first``: whether the class token and its like are parts too; FILIP and Wukong drop them.
    * ``head``: of each part, see `unicl.towers.heads.make_head`; None is the tower's own head, "none" leaves the
      states as they are, in their own width.
    * ``unit``: whether each part is brought to unit length.
    * ``reduced``: how many parts Wukong's token reduction leaves; 0 leaves all.
    """

    stage: int | None = None
    first: bool = False
    head: HeadKind | None = None
    unit: bool = True
    reduced: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TextParts:
    """Which tokens of a text are parts; padding never is.

    * ``words``: whether the pieces of a word are added up to one part.
    * ``layers``: how many of the last layers are added up (GLoRIA: 4); a pool of the tower reads the same sum.
    * ``marks``: which of the marks around a text are parts: "both" (FILIP), "start" (GLoRIA's code) or "none".
    * ``head`` and ``unit``: as in `ImageParts`.
    * ``room``: for how many parts each text has room at least. What is not filled is padding, which only the
      similarity with ``pads="zero"`` sees: Wukong's released code pads every text to 32 tokens.
    """

    words: bool = False
    layers: int = 1
    marks: Marks = "both"
    head: HeadKind | None = None
    unit: bool = True
    room: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a backbone says of a column before any head: ``features (N, F)`` and the states of its parts."""

    features: Tensor
    parts: Parts | None = None

    def packed(self) -> Tensor:
        """``(N, F + P F')``: features, and behind them the states of the parts of an image, all of which are real."""
        if self.parts is None:
            return self.features
        return torch.cat([self.features, self.parts.values.flatten(1)], dim=1)


def unpacked(rows: Tensor, *, features: int, states: int) -> Look:
    """What `Look.packed` packed, with parts of ``states`` numbers each."""
    values = rows[:, features:].reshape(len(rows), (rows.shape[1] - features) // states, states)
    parts = Parts(values=values, mask=values.new_ones(values.shape[:2], dtype=torch.bool))
    return Look(features=rows[:, :features], parts=parts)


class PartsHead(nn.Module):
    """States of parts to the shared width: a head of their own or the tower's, Wukong's reduction, unit length.

    Raises `UserError` if the reduction cannot cut the width into its groups.
    """

    def __init__(self, settings: ImageParts | TextParts, *, features: int, width: int) -> None:
        super().__init__()
        self.unit: Final = settings.unit
        own = settings.head
        # States as they are need not have the shared width, where a term of its own reads them.
        plain = own in (None, "none")
        self.head: Final = nn.Identity() if own is None or plain else make_head(own, features=features, width=width)
        self.width: Final = features if own == "none" else width
        self.owns_head: Final = own is not None
        self.room: Final = settings.room if isinstance(settings, TextParts) else 0
        reduced = settings.reduced if isinstance(settings, ImageParts) else 0
        if reduced and width % GROUPS:
            raise UserError(
                f"parts are reduced in {GROUPS} groups of their dimensions, and {width} dimensions cannot be cut so; "
                f"take a width that is a multiple of {GROUPS}"
            )
        self.reducer: Final = Reducer(width=width, parts=reduced) if reduced else None

    def forward(self, states: Parts, *, head: nn.Module) -> Parts:
        """``states`` of F dimensions to parts of D, float32 at least, 0 in padding; ``head`` is the tower's own."""
        values, mask = (self.head if self.owns_head else head)(states.values), states.mask
        if self.reducer is not None:
            values = self.reducer(values)
            mask = mask.new_ones(values.shape[:2])
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        values = nn.functional.normalize(values, dim=-1) if self.unit else values
        return Parts(values=_real(values, mask), mask=mask).padded(self.room)


def parts_in(state: Mapping[str, Tensor]) -> set[str]:
    """The entries of a tower's state that belong to its parts alone."""
    return {key for key in state if key.startswith(_OWN)}


def without_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A tower's state without them."""
    return {key: value for key, value in state.items() if not key.startswith(_OWN)}


def with_parts(features: Tensor, parts: Parts) -> Embedding:
    """An embedding whose whole is the mean of its parts at unit length; 0 for a row without any."""
    return Embedding(whole=nn.functional.normalize(mean_of(parts), dim=-1), features=features, parts=parts)


def mean_of(states: Parts) -> Tensor:
    """``(N, F)``: the mean of the real parts; 0 for a row without any."""
    counts = states.mask.sum(1, keepdim=True).clamp(min=1)
    return _real(states.values, states.mask).sum(1) / counts


def _real(values: Tensor, mask: Tensor) -> Tensor:
    # A product would keep what is not a number, as the states of a row without a real token may be.
    return values.masked_fill(~mask[..., None], 0)


def image_states(states: Tensor, *, prefix: int, channels_last: bool) -> Parts:
    """The parts of a backbone's states: tokens ``(N, prefix + P, F)``, or a map with its channels where they are.

    Raises `UserError` for states without places.
    """
    if states.ndim == 3:
        values = states[:, prefix:]
    elif states.ndim == 4:
        values = states.flatten(1, 2) if channels_last else states.flatten(2).transpose(1, 2)
    else:
        raise UserError("this image tower gives one vector a picture and has no parts; take a vision transformer")
    return Parts(values=values, mask=values.new_ones(values.shape[:2], dtype=torch.bool))


def text_states(states_ULF: Tensor, places: Tensor) -> Parts:
    """States of tokens added up by part; ``places (U, L)`` as `part_places` gives them."""
    size = max(int(places.max()) + 1, 1) if places.numel() else 1
    numbers = torch.arange(size, device=places.device)
    mask = numbers <= places.amax(1, keepdim=True)
    if size == places.shape[1] and bool((places == numbers)[mask].all()):
        return Parts(values=states_ULF, mask=mask)
    values = states_ULF.new_zeros(len(places), size + 1, states_ULF.shape[-1])
    at = (places + 1)[..., None].expand_as(states_ULF)
    return Parts(values=values.scatter_add(1, at, states_ULF)[:, 1:], mask=mask)


def part_places(tokens: Tensor, mask: Tensor, *, settings: TextParts, pieces: Pieces) -> Tensor:
    """``(U, L)`` int64: which part of its text each token belongs to, from 0; -1 for padding and left-out marks."""
    marked = pieces.marks[tokens] & mask
    start = torch.arange(tokens.shape[1], device=tokens.device) == 0
    left_out = {"both": marked & False, "start": marked & ~start, "none": marked}[settings.marks]
    kept = mask & ~left_out
    begins = kept
    if settings.words:
        after_end = nn.functional.pad(pieces.closes[tokens[:, :-1]], (1, 0), value=True)
        after_blank = nn.functional.pad(pieces.blank[tokens[:, :-1]], (1, 0), value=False)
        begins = kept & (pieces.opens[tokens] & ~after_blank | after_end | marked)
    return torch.where(kept, begins.cumsum(1) - 1, -1)


def part_words(tokenizer: Tokenizer, text: str, *, settings: TextParts) -> tuple[str, ...]:
    """What the parts of a text say, in their order: tokens or words as they stand in it, marks as they are called."""
    pieces = tokenizer.pieces
    tokens, mask = tokenizer([text])
    places = part_places(tokens, mask, settings=settings, pieces=pieces)[0].tolist()
    cleaned, spans = tokenizer.spans(text)
    said: dict[int, tuple[int, int]] = {}
    marks = {place: pieces.entries[token] for place, token in zip(places, tokens[0].tolist(), strict=True)}
    for place, (start, end) in zip(places, spans, strict=False):
        first, last = said.get(place, (start, end))
        said[place] = (min(first, start), max(last, end))
    return tuple(cleaned[slice(*said[place])].strip() or marks[place] for place in sorted(said) if place >= 0)
