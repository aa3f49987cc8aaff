"""Systems that CLIP was measured against: captions predicted word by word or as a bag, and a bag in contrast."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, Literal, get_args

from unicl.data.stream import StreamSettings
from unicl.model import ZeroShotSettings
from unicl.objective.terms import BagSettings, CaptionSettings, ContrastSettings
from unicl.recipes.recipe import Recipe, Size, chosen, known
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts
from unicl.towers.text import TextSettings
from unicl.towers.weights.published import CLIP_MEAN, CLIP_STD
from unicl.train.compute import ComputeSettings
from unicl.train.loop import FitSettings
from unicl.train.optim import OptimSettings

Loss = Literal["softmax", "sigmoid"]
LIKELIHOOD: Final = ZeroShotSettings(ensemble="likelihood")


def caption_lm(*, towers: str = "laptop", batch: int | None = None) -> Recipe:
    """Caption language model (CLIP, section 2.3): a transformer writes the caption of an image from left to right.

    ``towers``: laptop, or resnet50 with the 63 M transformer of CLIP's figure 2, which looks at the image's places.
    """
    size = chosen(CAPTIONS, towers)
    text = size.text
    term = CaptionSettings(task="captioning", width=text.dim, layers=text.layers, heads=text.heads)
    return Recipe(
        name="caption_lm",
        terms=(term,),
        data=StreamSettings(keys="sample", batch=batch or size.batch, augment=size.augment, captions=True),
        image=replace(size.image, head="none", parts=ImageParts(head="none", unit=False)),
        text=None,
        words=text,
        width=None,
        zero_shot=LIKELIHOOD,
        optim=size.optim,
        fit=size.fit,
        compute=ComputeSettings(scores="bf16" if size.fit.precision == "bf16" else "fp32"),
    )


def bag_prediction(*, towers: str = "laptop", loss: Loss = "softmax", batch: int | None = None) -> Recipe:
    """Bag-of-words prediction (Joulin et al. 2016): an image predicts the set of words of its caption.

    ``loss``: softmax, or sigmoid for each word by itself. ``towers``: laptop, or resnet50 as in CLIP's figure 2.
    """
    size = chosen(WORDS, towers)
    known(loss, among=get_args(Loss), argument="loss")
    return Recipe(
        name="bag_prediction",
        terms=(BagSettings(loss=loss),),
        data=StreamSettings(keys="sample", batch=batch or size.batch, augment=size.augment, captions=True),
        image=replace(size.image, head="none"),
        text=None,
        words=size.text,
        width=None,
        zero_shot=LIKELIHOOD,
        optim=size.optim,
        fit=size.fit,
    )


def bag_contrast(*, towers: str = "laptop", batch: int | None = None) -> Recipe:
    """Bag-of-words contrast (CLIP, section 2.3): CLIP with the mean of word embeddings as its text tower.

    ``towers``: laptop, or resnet50 as in CLIP's figure 2.
    """
    size = chosen(WORDS, towers)
    return Recipe(
        name="bag_contrast",
        terms=(ContrastSettings(),),
        data=StreamSettings(keys="sample", batch=batch or size.batch, augment=size.augment),
        image=size.image,
        text=replace(size.text, name="bag"),
        width=size.width,
        optim=size.optim,
        fit=size.fit,
    )


WORDS: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": Size(width=512),
        "resnet50": Size(
            image=ImageSettings(name="resnet50_clip", head="none", mean=CLIP_MEAN, std=CLIP_STD),
            text=TextSettings(tokenizer="clip", layers=12, dim=512, heads=8),
            width=1024,
            batch=32_768,
            optim=OptimSettings(beta2=0.999, eps=1e-8, warmup=2000),
            fit=FitSettings(epochs=32, precision="bf16"),
        ),
    }
)
"""Sizes of CLIP's figure 2: its ResNet-50 and, for the caption language model, a transformer of its text tower's size.

How these were trained is not published; the numbers are those of CLIP's ResNet-50 (its tables 18 to 20).
"""

CAPTIONS: Final[Mapping[str, Size]] = MappingProxyType(
    # What is read are the places before the attention pool, which would never learn.
    {**WORDS, "resnet50": replace(WORDS["resnet50"], image=replace(WORDS["resnet50"].image, name="resnet50_clip_gap"))}
)
"""The same for the caption language model."""
