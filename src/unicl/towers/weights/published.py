"""A published model, as its checkpoint describes it, in our words: what every layout is read into and written from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from unicl.data.text import Tokenizer
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, TextTower
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rules, Unused, to_ours

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
HALF: Final = (0.5, 0.5, 0.5)
"""Pixels from -1 to 1: the mean and the deviation of ALIGN, LiT and SigLIP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A model in our words.

    * ``origin``: one line for people, such as "OpenAI CLIP (state dict)"; ``source``: the file or folder.
    * ``image``, ``text``: settings that build its towers exactly, weights "random"; None if it has no such tower.
    * ``width``: of the embedding, D.
    * ``state``: every entry of our towers' state dicts as "image..." and "text...", but for the buffers mean and std;
      and "log_scale" (), the logarithm of the multiplier of cosines, and "bias" () if it has them; and "objective..."
      of a term that has weights of its own.
    * ``mean``, ``std``: of pixels from 0 to 1.
    * ``eos_id``, ``pad_id``, ``vocab_size``: what a text tower is built with.
    * ``tokenizer``: the one at hand; None means the one that ``text.tokenizer`` names.
    * ``terms``, ``zero_shot``: how its embeddings are compared, in the words of a model's config.json; without terms,
      whole vectors by cosine.
    * ``notes``: what was left out, remapped or resized, and why.
    """

    origin: str
    source: str = ""
    image: ImageSettings | None
    text: TextSettings | None
    width: int
    state: Mapping[str, Tensor]
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    eos_id: int = -1
    pad_id: int = 0
    vocab_size: int = 0
    tokenizer: Tokenizer | None = None
    terms: tuple[Mapping[str, Any], ...] = ()
    zero_shot: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def pair(self) -> bool:
        """Whether it has both towers."""
        return self.image is not None and self.text is not None

    @property
    def scale(self) -> float | None:
        """The multiplier of cosines."""
        found = self.state.get("log_scale")
        return None if found is None else math.exp(float(found))

    @property
    def bias(self) -> float | None:
        """What is added to scaled cosines (SigLIP)."""
        found = self.state.get("bias")
        return None if found is None else float(found)


class Layout(Protocol):
    """What a module of this folder has, if it is a layout: it recognises by content, reads, and perhaps writes.

    A module that only reads has no ``refusal`` and no ``write``: see `Writer`.
    """

    NAME: str

    def recognises(self, found: Checkpoint) -> bool:
        """Whether this checkpoint is in the layout, by the names and shapes inside, never by its file name."""

    def read(self, found: Checkpoint) -> Published:
        """The whole of it; raises `UserError` naming what is missing, unexpected or wrongly shaped."""


class Writer(Protocol):
    """A layout that can be written."""

    NAME: str

    def refusal(self, model: Published) -> str | None:
        """What of this model the layout cannot express, or None; asked before anything is written."""

    def write(self, model: Published, folder: Path) -> tuple[Path, ...]:
        """Write the model into an existing, empty folder, and return the files; only if there is no `refusal`."""


def wanted(
    *,
    image: ImageSettings | None,
    text: TextSettings | None,
    width: int,
    vocab_size: int = 0,
    eos_id: int = -1,
    pad_id: int = 0,
    scale: bool = True,
    bias: bool = False,
) -> dict[str, Tensor]:
    """Names and shapes of ``Published.state`` for these settings, on the meta device."""
    with torch.device("meta"):
        towers: dict[str, torch.nn.Module] = {}
        if image is not None:
            towers["image"] = ImageTower(image, width=width)
        if text is not None:
            towers["text"] = TextTower(text, width=width, vocab_size=vocab_size, eos_id=eos_id, pad_id=pad_id)
        found = {f"{side}.{key}": value for side, tower in towers.items() for key, value in tower.state_dict().items()}
        scalars = {"log_scale": scale, "bias": bias}
        found |= {name: torch.zeros(()) for name, has in scalars.items() if has}
    return {key: value for key, value in found.items() if key not in ("image.mean", "image.std")}


def assembled(
    found: Mapping[str, Tensor],
    model: Published,
    *,
    rules: Rules,
    unused: tuple[Unused, ...] = (),
    scale: bool = True,
    bias: bool = False,
) -> Published:
    """``model``, whose ``state`` is still empty, with the tensors of ``found`` by ``rules``, all accounted for."""
    shapes = wanted(
        image=model.image,
        text=model.text,
        width=model.width,
        vocab_size=model.vocab_size,
        eos_id=model.eos_id,
        pad_id=model.pad_id,
        scale=scale,
        bias=bias,
    )
    state, notes = to_ours(found, wanted=shapes, rules=rules, unused=unused, source=model.source or model.origin)
    return replace(model, state=state, notes=(*model.notes, *notes))
