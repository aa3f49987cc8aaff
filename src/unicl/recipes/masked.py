"""Systems that learn pictures from the concepts of their captions: tag prediction and ICMLM."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, Literal, get_args

from unicl.data.stream import StreamSettings
from unicl.data.words.masking import Hidden
from unicl.data.words.tags import Speech, Tags
from unicl.objective.terms import ClassifySettings, MaskedSettings
from unicl.recipes.recipe import DEFAULT_IMAGE, Recipe, Size, chosen, known
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts, TextParts
from unicl.towers.text import TextSettings
from unicl.train.compute import ComputeSettings
from unicl.train.loop import FitSettings

Model = Literal["tfm", "att_fc"]
TagsBy = Literal["none", "nouns", "adjectives", "verbs", "clusters"]


def icmlm(
    *,
    model: Model = "tfm",
    tags: TagsBy = "none",
    tag_weight: float = 1.0,
    concepts: int = 1000,
    towers: str = "laptop",
    batch: int | None = None,
) -> Recipe:
    """ICMLM (Sariyildiz et al. 2020): pictures help a locked language model to find words hidden in captions.

    ``model``: a transformer over places and tokens ("tfm"), or attention to places that a caption steers ("att_fc").
    ``tags``: what is predicted beside it, with ``tag_weight``: see `tag_prediction`. ``concepts``: how many words may
    be hidden, or are tags. ``towers``: laptop, or resnet50 and vgg16 with BERT-base.
    """
    size = chosen(ICMLM, towers)
    known(model, among=get_args(Model), argument="model")
    known(tags, among=get_args(TagsBy), argument="tags")
    asked = None if tags == "none" else Tags(by=tags, count=concepts)
    masked = MaskedSettings(model=model)
    return Recipe(
        name="icmlm",
        terms=(masked,) if asked is None else (masked, replace(TAGS, weight=tag_weight)),
        data=StreamSettings(
            keys="sample" if asked is None else "label",
            batch=batch or size.batch,
            augment=size.augment,
            captions=True,
            class_texts=False,
            hidden=Hidden(count=concepts),
        ),
        image=replace(size.image, head="none", parts=PLACES),
        text=replace(size.text, locked=True, parts=TextParts(head="none", unit=False)),
        tags=asked,
        width=None,
        optim=size.optim,
        fit=size.fit,
        compute=ComputeSettings(scores="bf16" if size.fit.precision == "bf16" else "fp32"),
    )


def tag_prediction(
    *,
    tags: Speech | Literal["clusters"] = "nouns",
    concepts: int = 1000,
    towers: str = "laptop",
    batch: int | None = None,
) -> Recipe:
    """Tag prediction (Sariyildiz et al. 2020, section 3.2): pictures are classified by the words of their captions.

    ``tags``: the ``concepts`` most frequent "nouns", nouns and "adjectives", or nouns, adjectives and "verbs"; or
    "clusters" of what a language model says of captions. ``towers``: laptop, resnet50 or vgg16.
    """
    size = chosen(ICMLM, towers)
    known(tags, among=get_args(TagsBy)[1:], argument="tags")
    return Recipe(
        name="tag_prediction",
        terms=(TAGS,),
        data=StreamSettings(keys="label", batch=batch or size.batch, augment=size.augment),
        image=replace(size.image, head="none"),
        text=None,
        words=size.text if tags == "clusters" else None,
        tags=Tags(by=tags, count=concepts),
        width=None,
        optim=size.optim,
        fit=size.fit,
    )


PLACES: Final = ImageParts(head="none", unit=False)
"""The last map as it is. Its mean is what VGG-16 says of a picture, whose dense layers then learn nothing."""
TAGS: Final = ClassifySettings(name="tags", loss="sigmoid")
_BERT: Final = TextSettings(name="google-bert/bert-base-uncased", tokenizer="", weights="hub")
_BASE: Final = Size(
    image=ImageSettings(name="resnet50"), text=_BERT, batch=256, fit=FitSettings(epochs=100, precision="bf16")
)

ICMLM: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": Size(
            image=DEFAULT_IMAGE, text=replace(_BERT, name="package:minilm", weights="package:minilm", pool="cls")
        ),
        "resnet50": _BASE,
        "vgg16": replace(_BASE, image=ImageSettings(name="vgg16", pool="parts", parts=PLACES)),
    }
)
"""ICMLM's towers, from random weights, with a BERT-base that was trained before; how they learn here is this library's
choice."""
