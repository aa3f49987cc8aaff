"""Recipes: each system as one short function that returns its whole configuration.

A variant is ``dataclasses.replace(unicl(), width=256)``; your own is a function in your own file, used with
``--recipe my_file.py:my_recipe``.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, get_args

from unicl.data.image import Augment, Frame
from unicl.data.stream import StreamSettings
from unicl.errors import UserError, suggest
from unicl.model import ZeroShotSettings
from unicl.objective.terms import ClassifySettings, ContrastSettings, TermSettings, ViewsSettings
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts, TextParts
from unicl.towers.text import TextSettings
from unicl.towers.weights.published import CLIP_MEAN, CLIP_STD, HALF
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


Match = Literal["reduced", "tokens", "global"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What the variants of a system differ in: towers, embedding width, and how they are trained."""

    image: ImageSettings = DEFAULT_IMAGE
    text: TextSettings = TextSettings()
    width: int = 256
    reduced: int = 12
    batch: int = 128
    augment: Augment = Augment()
    optim: OptimSettings = OptimSettings()
    fit: FitSettings = FitSettings()


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


def filip(*, towers: str = "laptop", batch: int | None = None) -> Recipe:
    """FILIP (Yao et al. 2021): every patch finds its word and every word its patch; scores are means of maxima.

    ``towers``: laptop, or b32 and l14 as they were trained on 340 M pairs. The rate follows from the ``batch``.
    """
    size = _chosen(FILIP, towers)
    return Recipe(
        name="filip",
        terms=(ContrastSettings(similarity="tokenwise", part_share=0.25),),
        data=StreamSettings(keys="sample", batch=batch or size.batch, augment=Augment(policy="autoaugment")),
        image=replace(size.image, pool="parts", parts=ImageParts()),
        text=replace(size.text, pool="parts", parts=TextParts()),
        width=256,
        zero_shot=ZeroShotSettings(ensemble="similarities"),
        optim=_at_batch(size.optim, batch or size.batch),
        fit=size.fit,
    )


def wukong(*, towers: str = "laptop", match: Match = "reduced", batch: int | None = None) -> Recipe:
    """Wukong (Gu et al. 2022): Chinese texts learn to match a locked image tower through one more matrix of its own.

    ``match``: "reduced" compares words with a few learned means of patches, "tokens" with all patches (the paper's
    -F), "global" compares whole vectors (-G). ``towers``: laptop, b32, l14 or swin_l; the ``batch`` is as in `filip`.
    """
    size = _chosen(WUKONG, towers)
    _known(match, among=get_args(Match), argument="match")
    image, text = replace(size.image, locked=True), replace(size.text, tokenizer="chinese", context=32, pool="last")
    whole = match == "global"
    if not whole:
        image = replace(image, pool="parts", parts=ImageParts(reduced=size.reduced if match == "reduced" else 0))
        text = replace(text, pool="parts", parts=TextParts())
    return Recipe(
        name="wukong",
        terms=(ContrastSettings(similarity="cosine" if whole else "tokenwise"),),
        data=StreamSettings(keys="sample", batch=batch or size.batch),
        image=image,
        text=text,
        width=size.width if whole else 256,
        zero_shot=ZeroShotSettings(ensemble="embeddings" if whole else "probabilities"),
        optim=_at_batch(size.optim, batch or size.batch),
        fit=size.fit,
    )


def gloria(*, towers: str = "laptop") -> Recipe:
    """GLoRIA (Huang et al. 2021): whole against whole, and each word against the regions that it looks at.

    ``towers``: laptop, or resnet50 with a clinical BERT, as published. Its rate stays what it is where the paper's is
    halved after 5 epochs without a better one; a whole report is one text here, so give its sentences as texts.
    """
    size = _chosen(GLORIA, towers)
    ten = ScaleSettings(init=10.0, learned=False)
    # Both directions add up where ours are a mean.
    whole = ContrastSettings(name="global", weight=2.0, scale=ten)
    local = replace(whole, name="local", similarity="attended", use_options={"over": "max", "skip": 1})
    words = TextParts(words=True, layers=4, marks="start", unit=False)
    return Recipe(
        name="gloria",
        terms=(whole, local),
        data=StreamSettings(keys="sample", batch=size.batch, augment=size.augment),
        image=replace(size.image, head="affine", parts=ImageParts(stage=3, head="linear", unit=False)),
        text=replace(size.text, pool="mean", parts=words, head="none"),
        width=size.width,
        zero_shot=ZeroShotSettings(ensemble="best", standardise=True),
        optim=size.optim,
        fit=size.fit,
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


def _chosen(sizes: Mapping[str, Size], towers: str) -> Size:
    _known(towers, among=sizes, argument="towers")
    return sizes[towers]


def _known(value: str, *, among: Collection[str], argument: str) -> None:
    if value not in among:
        raise UserError(f"unknown {argument} {value!r}{suggest(value, among)}; this recipe knows {', '.join(among)}")


def _at_batch(optim: OptimSettings, batch: int) -> OptimSettings:
    """The rate of a batch of 512 to that of another: it grows with the root (FILIP, appendix)."""
    return replace(optim, lr=optim.lr * math.sqrt(batch / 512))


VIT_B32: Final = ImageSettings(name="vit_base_patch32_clip_quickgelu_224")
VIT_L14: Final = ImageSettings(name="vit_large_patch14_clip_quickgelu_224")
CLIP_TEXT: Final = TextSettings(tokenizer="clip", layers=12, dim=512, heads=8)
CLIP_TEXT_LARGE: Final = replace(CLIP_TEXT, dim=768, heads=12)
LAMB: Final = OptimSettings(
    method="lamb", beta1=0.9, beta2=0.999, eps=1e-4, weight_decay=3e-3, decay_embeddings=False, warmup=3000
)
PUBLISHED: Final = FitSettings(epochs=30, precision="bf16")
LAPTOP: Final = Size(optim=replace(LAMB, lr=6e-3, warmup=0.1))

FILIP: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": LAPTOP,
        "b32": Size(
            image=replace(VIT_B32, checkpointing=True),
            text=replace(CLIP_TEXT, checkpointing=True),
            batch=320 * 128,
            optim=replace(LAMB, lr=2e-3),
            fit=PUBLISHED,
        ),
        "l14": Size(
            image=replace(VIT_L14, checkpointing=True),
            text=replace(CLIP_TEXT_LARGE, checkpointing=True),
            batch=160 * 192,
            optim=replace(LAMB, lr=8e-4),
            fit=PUBLISHED,
        ),
    }
)
"""FILIP's sizes and its training on 340 M pairs (appendix); on YFCC, b32 had batch 8192, lr 6e-3 and decay 3e-2."""

# The paper's batch, rate and length were not in reach: these are FILIP's, to be set with --batch, --lr and --epochs.
WUKONG: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": LAPTOP,
        "b32": Size(
            image=replace(VIT_B32, name=f"{VIT_B32.name}.openai", weights="hub"),
            text=CLIP_TEXT,
            width=512,
            batch=320 * 128,
            optim=replace(LAMB, lr=2e-3),
            fit=PUBLISHED,
        ),
        # Theirs began with FILIP's own L/14, which is not public.
        "l14": Size(
            image=replace(VIT_L14, name=f"{VIT_L14.name}.openai", weights="hub"),
            text=CLIP_TEXT_LARGE,
            width=768,
            reduced=24,
            batch=160 * 192,
            optim=replace(LAMB, lr=8e-4),
            fit=PUBLISHED,
        ),
        "swin_l": Size(
            image=ImageSettings(
                name="swin_large_patch4_window7_224.ms_in22k",
                head="affine",
                weights="hub",
                mean=CLIP_MEAN,
                std=CLIP_STD,
            ),
            text=CLIP_TEXT_LARGE,
            width=768,
            batch=160 * 192,
            optim=replace(LAMB, lr=8e-4),
            fit=PUBLISHED,
        ),
    }
)
"""Wukong's sizes; ``width`` is that of whole vectors, parts have 256."""

GLORIA: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": Size(text=TextSettings(name="bert")),
        "resnet50": Size(
            image=ImageSettings(
                name="resnet50.tv_in1k",
                frame=Frame(mode="pad", scale=256, interpolation="bilinear"),
                enlarged=299,
                mean=HALF,
                std=HALF,
                weights="hub",
            ),
            text=TextSettings(name="emilyalsentzer/Bio_ClinicalBERT", tokenizer="", weights="hub", context=97),
            width=768,
            batch=48,
            augment=Augment(shift=True),
            optim=OptimSettings(
                method="adam",
                lr=5e-5,
                weight_decay=1e-6,
                beta1=0.5,
                beta2=0.999,
                eps=1e-8,
                warmup=0,
                final=1.0,
                clip=0.25,
            ),
            fit=FitSettings(epochs=50, precision="bf16"),
        ),
    }
)
"""GLoRIA's size and training, as released (chexpert_pretrain_config.yaml)."""
