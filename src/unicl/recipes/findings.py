"""Systems that match images and texts by what is known of both, not by pairing: MedCLIP."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, Literal, get_args

from unicl.data.collate import FindingValues
from unicl.data.image import Augment, Frame
from unicl.data.stream import StreamSettings
from unicl.model import ZeroShotSettings
from unicl.objective.terms import ContrastSettings
from unicl.recipes.recipe import Recipe, Size, chosen, known
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.towers.weights.medclip import MEAN, STD
from unicl.train.loop import FitSettings
from unicl.train.optim import OptimSettings


def medclip(*, towers: str = "laptop", match: Literal["cosine", "dot"] = "cosine", batch: int | None = None) -> Recipe:
    """MedCLIP (Wang et al. 2022): any image matches any sentence as far as they share findings, paired or not.

    ``match``: the target is the softmax of the "cosine" of multi-hot vectors (the paper), or of the "dot" product of
    vectors with -1 for what is absent (its code, which also shows each text a second time in other words, and pools
    texts over padding: the pool "padded").
    ``towers``: laptop, or swin and resnet50 with a clinical BERT as published.
    """
    size = chosen(MEDCLIP, towers)
    known(match, among=get_args(Literal["cosine", "dot"]), argument="match")
    findings = ContrastSettings(
        name="findings",
        texts="findings",
        findings=match,
        scale=ScaleSettings(init=1 / 0.07, min=1.0),
    )
    return Recipe(
        name="medclip",
        terms=(findings,),
        data=StreamSettings(
            keys="sample",
            batch=batch or size.batch,
            augment=size.augment,
            sentences=True,
            least_words=5,
            text_views=2 if match == "dot" else 1,
            findings=FindingValues(absent=-1.0 if match == "dot" else 0.0),
        ),
        image=size.image,
        text=replace(size.text, pool="mean", states=(1, 2, -1)),
        width=size.width,
        zero_shot=ZeroShotSettings(ensemble="similarities"),
        optim=size.optim,
        fit=size.fit,
    )


_SQUARE: Final = Frame(mode="pad", scale=256, interpolation="bilinear")
_GRAY: Final = ImageSettings(frame=_SQUARE, mean=(MEAN,) * 3, std=(STD,) * 3, weights="hub")
_PUBLISHED: Final = Size(
    image=replace(_GRAY, name="swin_tiny_patch4_window7_224.ms_in1k"),
    text=TextSettings(name="emilyalsentzer/Bio_ClinicalBERT", tokenizer="", weights="hub", dropout=0.1),
    width=512,
    batch=100,
    augment=Augment(shift=True, flip=True, policy="chest"),
    optim=OptimSettings(lr=2e-5, weight_decay=1e-4, beta2=0.999, eps=1e-8, warmup=0.1, clip=1.0),
    fit=FitSettings(epochs=10, precision="bf16"),
)

MEDCLIP: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": Size(text=TextSettings(name="bert")),
        "swin": _PUBLISHED,
        "resnet50": replace(_PUBLISHED, image=replace(_GRAY, name="resnet50.tv_in1k")),
    }
)
"""MedCLIP's towers and training, as its released script has them (the paper's rate, as remembered, was 5e-5)."""
