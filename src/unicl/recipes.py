"""Recipes: each system as one short function that returns its whole configuration.

A variant is ``dataclasses.replace(unicl(), width=256)``; your own is a function in your own file, used with
``--recipe my_file.py:my_recipe``.
"""

import math
from dataclasses import dataclass, replace

from unicl.data.image import Augment
from unicl.data.stream import StreamSettings
from unicl.model import ZeroShotSettings
from unicl.objective.terms import ClassifySettings, ContrastSettings, TermSettings, ViewsSettings
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts, TextParts
from unicl.towers.text import TextSettings
from unicl.train.compute import ComputeSettings
from unicl.train.loop import FitSettings
from unicl.train.optim import OptimSettings

DEFAULT_IMAGE = ImageSettings(name="efficientnet_lite0", size=160, weights="auto")
"""Small enough for a laptop; ``auto`` takes the weights of an installed package, or else starts at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All choices of a system: keys and data, towers, the terms of the objective, and how it is trained."""

    name: str
    terms: tuple[TermSettings, ...]
    data: StreamSettings = StreamSettings()
    image: ImageSettings = DEFAULT_IMAGE
    text: TextSettings | None = TextSettings()
    width: int = 512
    zero_shot: ZeroShotSettings = ZeroShotSettings()
    optim: OptimSettings = OptimSettings()
    fit: FitSettings = FitSettings()
    compute: ComputeSettings = ComputeSettings()


def clip() -> Recipe:
    """CLIP (Radford et al. 2021): an image belongs to its own texts and to nothing else of the batch."""
    return Recipe(name="clip", terms=(ContrastSettings(),), data=StreamSettings(keys="sample"))


def unicl() -> Recipe:
    """UniCL (Yang et al. 2022): images and texts of one class belong together; a caption is a class of its own."""
    contrast = ContrastSettings(scale=ScaleSettings(init=math.e, max=None))
    return Recipe(name="unicl", terms=(contrast,), data=StreamSettings(keys="label", balance=True))


def florence() -> Recipe:
    """Florence (Yuan et al. 2021): UniCL's loss where equal texts are one thing."""
    return replace(unicl(), name="florence", data=StreamSettings(keys="text"))


def itl(*, width: int = 512, class_share: float = 0.5, class_dims: int | None = None, nested: bool = True) -> Recipe:
    """Ours: captions on the whole vector, class texts on its first ``class_dims`` (half), each with its own scale.

    ``class_share`` is the weight of the classes; ``nested=False`` puts both into one softmax of whole vectors.
    """
    captions = ContrastSettings(texts="captions", weight=1 - class_share)
    dims = class_dims or width // 2
    classes = ContrastSettings(name="classes", texts="classes", weight=class_share, dims=dims, count_classes=False)
    joint = ContrastSettings(class_share=class_share, count_classes=False)
    return Recipe(name="itl", width=width, terms=(captions, classes) if nested else (joint,))


def siglip() -> Recipe:
    """SigLIP (Zhai et al. 2023): every pair is its own yes or no; scale 10 and bias -10 at the start."""
    contrast = ContrastSettings(loss="sigmoid", scale=ScaleSettings(init=10.0, max=None, bias=-10.0))
    return Recipe(name="siglip", terms=(contrast,), data=StreamSettings(keys="sample"))


def filip() -> Recipe:
    """FILIP (Yao et al. 2021): every patch finds its word and every word its patch; scores are means of maxima."""
    contrast = ContrastSettings(similarity="tokenwise", part_share=0.25)
    return Recipe(
        name="filip",
        terms=(contrast,),
        data=StreamSettings(keys="sample"),
        image=replace(DEFAULT_IMAGE, pool="parts", parts=ImageParts()),
        text=TextSettings(pool="parts", parts=TextParts()),
        width=256,
        zero_shot=ZeroShotSettings(ensemble="similarities"),
    )


def wukong() -> Recipe:
    """Wukong (Gu et al. 2022): FILIP for Chinese on a locked image tower, with a few learned means of its patches."""
    text = TextSettings(tokenizer="chinese", context=32, pool="parts", parts=TextParts())
    image = replace(DEFAULT_IMAGE, locked=True, pool="parts", parts=ImageParts(reduced=12))
    return replace(filip(), name="wukong", image=image, text=text, zero_shot=ZeroShotSettings(ensemble="probabilities"))


def gloria() -> Recipe:
    """GLoRIA (Huang et al. 2021): whole against whole, and each word against the regions that it looks at."""
    ten = ScaleSettings(init=10.0, learned=False)
    whole = ContrastSettings(name="global", weight=2.0, scale=ten)
    local = ContrastSettings(
        name="local", weight=2.0, similarity="attended", use_options={"over": "max", "skip": 1}, scale=ten
    )
    words = TextParts(words=True, layers=4, marks="start", unit=False)
    return Recipe(
        name="gloria",
        terms=(whole, local),
        data=StreamSettings(keys="sample"),
        image=replace(DEFAULT_IMAGE, head="affine", parts=ImageParts(stage=3, head="linear", unit=False)),
        text=TextSettings(name="bert", pool="parts", parts=words, head="none"),
        width=256,
        zero_shot=ZeroShotSettings(ensemble="best", standardise=True),
    )


def supcon() -> Recipe:
    """SupCon (Khosla et al. 2020): two strong views of each image, equal labels belong together; no texts."""
    strong = Augment(crop=(0.2, 1.0), flip=True, jitter=1.0, gray=0.2)
    data = StreamSettings(keys="label", views=2, augment=strong)
    return Recipe(
        name="supcon",
        terms=(ViewsSettings(),),
        data=data,
        image=replace(DEFAULT_IMAGE, head="mlp"),
        text=None,
        width=128,
    )


def cross_entropy() -> Recipe:
    """Plain classification: a linear layer over the classes of the data; no texts."""
    data = StreamSettings(keys="label", augment=Augment(crop=(0.2, 1.0), flip=True))
    return Recipe(
        name="cross_entropy",
        terms=(ClassifySettings(),),
        data=data,
        image=replace(DEFAULT_IMAGE, head="none"),
        text=None,
    )
