"""Classification: a linear layer over classes on what the image tower makes of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.objective.peers import Shared, nothing, total
from unicl.objective.plan import Tiling
from unicl.space import Embedding, Keys, TextType, prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifySettings:
    """A linear layer over the classes of the training data.

    * ``loss``: "softmax" is cross-entropy, in which an image with K classes has 1 / K of each; "sigmoid" asks each
      class by itself (binary cross-entropy), so that any number of them may be there.
    * ``smoothing``: the share of a target that goes to all classes alike, or with "sigmoid" to yes and no alike.
    * ``of``: the "labels" of images, or their "findings", which the sigmoid alone can ask for. A finding that counts 1
      is a yes and one that counts -1 a no; between, it is uncertain and left out (what counts what is said by
      `unicl.data.collate.FindingValues`). ``unmentioned``: what counts 0 is taken for "absent", or "ignored".
    * ``reads``: the tower's "features" before its head, or the "whole" unit vector, of which ``dims`` says how many
      leading dimensions: there a layer of class texts' vectors is the zero-shot classifier.
    """

    kind: Literal["classify"] = "classify"
    name: str = "classes"
    weight: float = 1.0
    smoothing: float = 0.0
    loss: Literal["softmax", "sigmoid"] = "softmax"
    of: Literal["labels", "findings"] = "labels"
    unmentioned: Literal["absent", "ignored"] = "absent"
    reads: Literal["features", "whole"] = "features"
    dims: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassName:
    """A class of the training data: its label and the key that stands for it."""

    label: str
    key: int


class Classify(nn.Module):
    """A linear classifier of images; ``class_keys (C,)`` says which column is which class."""

    class_keys: Tensor

    def __init__(
        self, settings: ClassifySettings, *, features: int, classes: Sequence[ClassName], width: int | None = None
    ) -> None:
        super().__init__()
        _check(settings, classes)
        self.settings = settings
        self.of = TextType.CLASS if settings.of == "labels" else TextType.FINDING
        self.labels = tuple(c.label for c in classes)
        self.head = nn.Linear(_read(settings, features=features, width=width), len(classes))
        keys = torch.tensor([c.key for c in classes], dtype=torch.int64)
        self.register_buffer("class_keys", keys.sort().values)
        self.order = tuple(keys.argsort().tolist())

    def forward(self, shared: Shared, tiling: Tiling = Tiling()) -> Tensor:
        """The mean over the images of which something is known, and with "sigmoid" over what is asked of each."""
        del tiling
        columns = shared.columns
        if not bool(shared.image_keys.having(self.of).any()):
            return nothing(columns)
        known = columns.image_keys.having(self.of)
        shown_IC = self._shown(columns.image_keys.only(self.of).select(known))
        logits_IC = self.head(self.seen(columns.images)[known].to(self.head.weight.dtype))
        losses_IC, asked_IC = (self._each if self.settings.loss == "sigmoid" else self._one)(logits_IC, shown_IC)
        everything = shared.peers.sum(asked_IC.sum()).clamp(min=1)
        return total((losses_IC * asked_IC).sum() / everything, peers=shared.peers)

    def _one(self, logits_IC: Tensor, shown_IC: Tensor) -> tuple[Tensor, Tensor]:
        """``(I,)`` twice: cross-entropy with the classes of each image, and 1."""
        target_IC = (shown_IC / shown_IC.sum(1, keepdim=True)).to(logits_IC)
        losses = F.cross_entropy(logits_IC, target_IC, label_smoothing=self.settings.smoothing, reduction="none")
        return losses, torch.ones_like(losses)

    def _each(self, logits_IC: Tensor, shown_IC: Tensor) -> tuple[Tensor, Tensor]:
        """``(I, C)`` twice: binary cross-entropy of each class, and whether it is asked for."""
        settings, asked_IC = self.settings, torch.ones_like(logits_IC)
        if settings.of == "findings":
            asked_IC = (shown_IC.abs() >= 1) | ((shown_IC == 0) & (settings.unmentioned == "absent"))
        yes_IC = shown_IC.to(logits_IC).clamp(0, 1) * (1 - settings.smoothing) + settings.smoothing / 2
        losses_IC = F.binary_cross_entropy_with_logits(logits_IC, yes_IC, reduction="none")
        return losses_IC, asked_IC.to(logits_IC)

    def seen(self, images: Embedding) -> Tensor:
        """``(I, F)`` or ``(I, D')``: what the layer reads of images."""
        return images.features if self.settings.reads == "features" else prefix(images.whole, self.settings.dims)

    def _shown(self, keys: Keys) -> Tensor:
        """``(I, C)``: how much of each class is in an image."""
        place = torch.searchsorted(self.class_keys, keys.keys).clamp(max=len(self.class_keys) - 1)
        if not torch.equal(self.class_keys[place], keys.keys):
            raise UserError("the data has a class that the model was not built with; train on the same label set")
        columns = torch.tensor(self.order, device=place.device)[place]
        shown_IC = keys.weights.new_zeros(keys.size, len(self.class_keys))
        return shown_IC.index_put_((keys.rows, columns), keys.weights, accumulate=True)


def _check(settings: ClassifySettings, classes: Sequence[ClassName]) -> None:
    if not classes:
        raise UserError(
            "cross-entropy needs labels, but the data has none; name the label column or use clip"
            if settings.of == "labels"
            else f"the term {settings.name!r} needs findings, but the data has none; name them: 'PATH?findings=*'"
        )
    if settings.of == "findings" and settings.loss != "sigmoid":
        raise UserError(
            f"the term {settings.name!r} asks for findings, of which an image has several; add loss=sigmoid"
        )


def _read(settings: ClassifySettings, *, features: int, width: int | None) -> int:
    """How many numbers of an image the layer reads; raises `UserError` for a whole vector that nobody makes."""
    if settings.reads == "features":
        return features
    if settings.dims is None and width is None:
        raise UserError(f"the term {settings.name!r} reads whole vectors, but nobody says how wide they are; give dims")
    return settings.dims or width or 0
