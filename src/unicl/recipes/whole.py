"""Systems that compare whole vectors by what belongs together, or only name it: CLIP to plain cross-entropy."""

import math
from dataclasses import replace

from unicl.data.image import Augment
from unicl.data.stream import StreamSettings
from unicl.objective.terms import ClassifySettings, ContrastSettings, ViewsSettings
from unicl.recipes.recipe import DEFAULT_IMAGE, Recipe
from unicl.similarity.scale import ScaleSettings


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
