"""Systems of two towers that learn together from nothing but pairs: ALIGN, ConVIRT."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from unicl.data.image import Augment, Frame
from unicl.data.stream import StreamSettings
from unicl.objective.terms import ContrastSettings
from unicl.recipes.recipe import DEFAULT_IMAGE, Recipe, Size, chosen
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.towers.weights.published import HALF
from unicl.train.learning import Learning
from unicl.train.loop import FitSettings
from unicl.train.optim import OptimSettings
from unicl.train.stages import Stage


def align(*, towers: str = "laptop", batch: int | None = None) -> Recipe:
    """ALIGN (Jia et al. 2021): many pairs as they come, smoothed targets, and a temperature learned as it is.

    ``towers``: laptop, or l2 and b7 as in the paper, from random weights on 1.8 billion pairs; coyo is the b7 of
    COYO-ALIGN, the public re-implementation.
    """
    size = chosen(ALIGN, towers)
    sigma = ScaleSettings(init=size.scale, max=None, form="divisor")
    return Recipe(
        name="align",
        # Both directions add up where ours are a mean.
        terms=(ContrastSettings(weight=2.0, smoothing=0.1, scale=sigma),),
        data=StreamSettings(keys="sample", batch=batch or size.batch, augment=size.augment),
        image=replace(size.image, pool="stage", head="none"),
        text=replace(size.text, pool="cls", head="affine", context=64),
        width=None,
        optim=size.optim,
        fit=size.fit,
    )


def convirt(*, towers: str = "laptop", batch: int | None = None) -> Recipe:
    """ConVIRT (Zhang et al. 2022): a radiograph against one sentence of its report, drawn anew each time.

    Pictures look for their sentence with three quarters of the weight, at a fixed temperature of 0.1. ``towers``:
    laptop, or resnet50 with a clinical BERT whose first six layers are locked.
    """
    size = chosen(CONVIRT, towers)
    tenth = ScaleSettings(init=10.0, learned=False)
    return Recipe(
        name="convirt",
        terms=(ContrastSettings(image_weight=0.75, scale=tenth),),
        data=StreamSettings(keys="sample", batch=batch or size.batch, augment=size.augment, sentences=True),
        image=replace(size.image, head="mlp"),
        text=replace(size.text, pool="max", head="mlp"),
        width=size.width,
        optim=size.optim,
        fit=size.fit,
        stages=size.stages,
    )


SHIFTED: Final = Augment(shift=True, flip=True)
_LAMB: Final = OptimSettings(
    method="lamb",
    lamb="corrected",
    lr=1e-3,
    weight_decay=1e-5,
    beta1=0.9,
    beta2=0.999,
    warmup=10_000,
    decline="linear",
    clip=None,
)
_B7: Final = Size(
    image=ImageSettings(
        name="tf_efficientnet_b7",
        size=289,
        frame=Frame(mode="squash", scale=346, interpolation="bilinear"),
        mean=HALF,
        std=HALF,
        drop_path=0.2,
    ),
    text=TextSettings(name="bert", layers=12, dim=768, heads=12, vocab=100_000, eps=1e-12, dropout=0.1),
    scale=1.0,
    batch=16_384,
    augment=SHIFTED,
    optim=_LAMB,
    fit=FitSettings(steps=1_200_000, precision="bf16"),
)

ALIGN: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": Size(
            image=replace(
                DEFAULT_IMAGE,
                name="tf_efficientnet_lite0",
                frame=Frame(mode="squash", scale=192, interpolation="bilinear"),
            ),
            text=TextSettings(name="bert"),
            # From 1, LAMB would take hundreds of steps to sharpen: it moves a number by its own share.
            augment=SHIFTED,
            optim=replace(_LAMB, lr=6e-3, warmup=0.1),
        ),
        "b7": _B7,
        "l2": replace(
            _B7,
            image=replace(_B7.image, name="tf_efficientnet_l2"),
            text=replace(_B7.text, layers=24, dim=1024, heads=16),
        ),
        "coyo": replace(
            _B7,
            text=replace(_B7.text, vocab=30_522),
            batch=65_536,
            optim=replace(_LAMB, lr=2e-3, warmup=40_000, undecayed=(".bn",)),
            fit=FitSettings(steps=300_000, precision="bf16"),
        ),
    }
)
"""ALIGN's sizes (sections 4.1 and 5): pictures squeezed to 346 pixels, of which 289 are cut out."""

CONVIRT: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": Size(text=TextSettings(name="bert"), augment=Augment(crop=(0.6, 1.0))),
        "resnet50": Size(
            image=ImageSettings(name="resnet50.tv_in1k", weights="hub"),
            text=TextSettings(
                name="emilyalsentzer/Bio_ClinicalBERT", tokenizer="", weights="hub", context=128, dropout=0.1
            ),
            width=512,
            batch=32,
            augment=Augment(crop=(0.6, 1.0), flip=True, policy="radiograph"),
            optim=OptimSettings(
                method="adam",
                lr=1e-4,
                weight_decay=1e-6,
                beta2=0.999,
                eps=1e-8,
                warmup=0,
                final=1.0,
                halve=5,
                clip=None,
            ),
            fit=FitSettings(epochs=100, eval_every=5000, patience=200, precision="bf16"),
            stages=(Stage(text=Learning(from_block=6)),),
        ),
    }
)
"""ConVIRT's size; what of its training was not published in code is as the paper's text has it."""
