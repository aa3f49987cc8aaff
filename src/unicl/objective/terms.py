"""The terms of an objective: modules that take the columns, own their scale or head, and return a loss.

Each has settings (frozen, plain data, saved with the model) and a module; a new kind of term is one of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl.config import python_file
from unicl.errors import UserError, suggest
from unicl.objective import losses
from unicl.objective.targets import same_key
from unicl.similarity import Scale, ScaleSettings, cosine
from unicl.space import Columns, Keys, TextType, prefix

Loss = Callable[..., Tensor]
Texts = Literal["all", "captions", "classes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastSettings:
    """One contrast of images with texts.

    * ``texts``: which text rows it compares; images that are known not to belong to it stay out.
    * ``dims``: how many leading dimensions it reads (None: all).
    * ``loss``: the name of a function in `unicl.objective.losses`, or ``file.py:function`` with the same arguments.
    * ``class_share``: with both types of text in one softmax, the share of an image's mass that its class texts get.
    * ``count_classes``: whether a class text weighs as many rows as show it (UniCL), or one (typed rows).
    """

    kind: Literal["contrast"] = "contrast"
    name: str = "instances"
    weight: float = 1.0
    texts: Texts = "all"
    dims: int | None = None
    loss: str = "softmax"
    image_weight: float = 0.5
    smoothing: float = 0.0
    class_share: float | None = None
    count_classes: bool = True
    scale: ScaleSettings = ScaleSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsSettings:
    """SupCon: two augmented views of every image against each other, equal labels belonging together."""

    kind: Literal["views"] = "views"
    name: str = "views"
    weight: float = 1.0
    scale: ScaleSettings = ScaleSettings(init=10.0, learned=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifySettings:
    """Cross-entropy over the classes of the training data: a linear layer on the image tower's features."""

    kind: Literal["classify"] = "classify"
    name: str = "classes"
    weight: float = 1.0
    smoothing: float = 0.0


TermSettings = ContrastSettings | ViewsSettings | ClassifySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassName:
    """A class of the training data: its label and the key that stands for it."""

    label: str
    key: int


class Contrast(nn.Module):
    """The contrast that `ContrastSettings` describes: similarity, target and loss over the columns."""

    def __init__(self, settings: ContrastSettings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = Scale(settings.scale)

    def forward(self, columns: Columns) -> Tensor:
        """A scalar; zero (with a graph) if no image and text of the batch belong to this term."""
        texts = columns.texts
        if texts is None:
            raise UserError(f"the term {self.settings.name!r} compares texts, but the model has no text tower")
        image_rows, text_rows = self._taking(columns)
        images_ID = prefix(columns.images.whole[image_rows], self.settings.dims)
        texts_TD = prefix(texts.whole[text_rows], self.settings.dims)
        if 0 in (len(images_ID), len(texts_TD)):
            return nothing(columns)
        text_keys = columns.text_keys.select(text_rows)
        return find_loss(self.settings.loss)(
            self.scale(cosine(images_ID, texts_TD)),
            same_key(self._shared(columns.image_keys.select(image_rows)), text_keys),
            counts=self._counts(text_keys, columns.text_counts[text_rows]),
            image_weight=self.settings.image_weight,
            smoothing=self.settings.smoothing,
        )

    def _taking(self, columns: Columns) -> tuple[Tensor, Tensor]:
        image_caption, image_class = (columns.image_keys.having(type) for type in TextType)
        text_caption, text_class = (columns.text_keys.having(type) for type in TextType)
        match self.settings.texts:
            case "captions":  # an image without any key is a fair negative; one with only a label was not captioned
                return image_caption | ~image_class, text_caption
            case "classes":  # an image without a label may well show the class
                return image_class, text_class
            case _:
                return torch.ones_like(image_class), torch.ones_like(text_class)

    def _shared(self, keys: Keys) -> Keys:
        share = self.settings.class_share
        if share is None:
            return keys
        parts = torch.where(keys.types == int(TextType.CLASS), share, 1 - share)
        return replace(keys, weights=keys.weights * parts.to(keys.weights))

    def _counts(self, keys: Keys, counts: Tensor) -> Tensor:
        """Rows of one class text share one count if classes are not counted: two ranks then equal one."""
        if self.settings.count_classes or not len(keys.rows):
            return counts
        once = keys.types == int(TextType.CLASS)
        _, inverse, number = torch.unique(keys.keys[once], return_inverse=True, return_counts=True)
        return counts.index_put((keys.rows[once],), 1 / number[inverse].to(counts))


class Views(nn.Module):
    """The contrast of views that `ViewsSettings` describes (Khosla et al., section 3.2)."""

    def __init__(self, settings: ViewsSettings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = Scale(settings.scale)

    def forward(self, columns: Columns) -> Tensor:
        """A scalar; needs a second view of the images."""
        if columns.views is None:
            raise UserError("the term 'views' needs two views of each image; set views=2 in the recipe")
        if not columns.image_keys.size:
            return nothing(columns)
        stacked_ND = torch.cat([columns.images.whole, columns.views.whole])
        target_II = self._target(columns.image_keys)
        return losses.views(self.scale(cosine(stacked_ND, stacked_ND)), target_II.repeat(2, 2))

    def _target(self, keys: Keys) -> Tensor:
        # Two views of one image belong together whether or not its class is known.
        own = torch.eye(keys.size, device=keys.weights.device)
        return ((same_key(keys, keys) > 0) | (own > 0)).to(keys.weights)


class Classify(nn.Module):
    """A linear classifier on the features of the image tower; ``class_keys (C,)`` says which column is which class."""

    class_keys: Tensor

    def __init__(self, settings: ClassifySettings, *, features: int, classes: Sequence[ClassName]) -> None:
        super().__init__()
        if not classes:
            raise UserError("cross-entropy needs labels, but the data has none; name the label column or use clip")
        self.settings = settings
        self.labels = tuple(c.label for c in classes)
        self.head = nn.Linear(features, len(classes))
        keys = torch.tensor([c.key for c in classes], dtype=torch.int64)
        self.register_buffer("class_keys", keys.sort().values)
        self.order = tuple(keys.argsort().tolist())

    def forward(self, columns: Columns) -> Tensor:
        """Cross-entropy over the images that have a label, with shared or mixed labels as soft targets."""
        labelled = columns.image_keys.having(TextType.CLASS)
        if not labelled.any():
            return nothing(columns)
        target_IC = self._target(columns.image_keys.only(TextType.CLASS).select(labelled))
        logits_IC = self.head(columns.images.features[labelled].to(self.head.weight.dtype))
        return F.cross_entropy(logits_IC, target_IC.to(logits_IC), label_smoothing=self.settings.smoothing)

    def _target(self, keys: Keys) -> Tensor:
        place = torch.searchsorted(self.class_keys, keys.keys).clamp(max=len(self.class_keys) - 1)
        if not torch.equal(self.class_keys[place], keys.keys):
            raise UserError("the data has a class that the model was not built with; train on the same label set")
        columns = torch.tensor(self.order, device=place.device)[place]
        target_IC = keys.weights.new_zeros(keys.size, len(self.class_keys))
        target_IC.index_put_((keys.rows, columns), keys.weights, accumulate=True)
        return target_IC / target_IC.sum(1, keepdim=True)


Term = Contrast | Views | Classify


class Objective(nn.Module):
    """The weighted sum of the terms of a recipe."""

    def __init__(self, settings: Sequence[TermSettings], *, features: int, classes: Sequence[ClassName] = ()) -> None:
        super().__init__()
        names = [s.name for s in settings]
        if len(set(names)) != len(names):
            raise UserError(f"two terms of a recipe have one name: {', '.join(names)}")
        self.settings = tuple(settings)
        self.terms = nn.ModuleDict({s.name: _build(s, features=features, classes=classes) for s in settings})

    def forward(self, columns: Columns) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to go down, and each term's own value by name."""
        parts = {s.name: self.terms[s.name](columns) for s in self.settings}
        total = torch.stack([s.weight * parts[s.name] for s in self.settings]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    @property
    def reads_features(self) -> bool:
        """Whether a term reads the features before the head, which otherwise need not travel between ranks."""
        return any(isinstance(term, Classify) for term in self.terms.values())

    def clamp(self) -> None:
        """Bring every scale back below its limit; call after each step of the optimiser."""
        for scale in self.scales().values():
            scale.clamp()

    def scales(self) -> dict[str, Scale]:
        """The scale of each term that has one, by the term's name."""
        return {name: term.scale for name, term in self.terms.items() if isinstance(term, Contrast | Views)}


def find_loss(name: str) -> Loss:
    """A loss by its name in `unicl.objective.losses`, or by ``file.py:function``."""
    path, colon, function = name.rpartition(":")
    known = [n for n in vars(losses) if not n.startswith("_") and callable(getattr(losses, n))]
    home = python_file(Path(path)) if colon else losses
    loss: Loss | None = getattr(home, function, None)
    if loss is None:
        raise UserError(f"unknown loss {name!r}{suggest(name, known)}; give softmax, sigmoid or file.py:function")
    return loss


def nothing(columns: Columns) -> Tensor:
    """A zero that still has a graph, so that every rank and every step takes the same path."""
    total = columns.images.whole.sum() * 0
    return total if columns.texts is None else total + columns.texts.whole.sum() * 0


def _build(settings: TermSettings, *, features: int, classes: Sequence[ClassName]) -> Term:
    match settings:
        case ContrastSettings():
            return Contrast(settings)
        case ViewsSettings():
            return Views(settings)
        case ClassifySettings():
            return Classify(settings, features=features, classes=classes)
