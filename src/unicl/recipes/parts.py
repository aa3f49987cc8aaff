"""Systems that compare parts of pictures with words: FILIP, Wukong, GLoRIA."""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, Literal, get_args

from unicl.data.image import Augment, Frame
from unicl.data.stream import StreamSettings
from unicl.model import ZeroShotSettings
from unicl.objective.terms import ContrastSettings
from unicl.recipes.recipe import Recipe, Size, chosen, known
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts, TextParts
from unicl.towers.text import TextSettings
from unicl.towers.weights.published import CLIP_MEAN, CLIP_STD, HALF
from unicl.train.loop import FitSettings
from unicl.train.optim import OptimSettings

Match = Literal["reduced", "tokens", "global"]


def filip(*, towers: str = "laptop", batch: int | None = None) -> Recipe:
    """FILIP (Yao et al. 2021): every patch finds its word and every word its patch; scores are means of maxima.

    ``towers``: laptop, or b32 and l14 as they were trained on 340 M pairs. The rate follows from the ``batch``.
    """
    size = chosen(FILIP, towers)
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
    size = chosen(WUKONG, towers)
    known(match, among=get_args(Match), argument="match")
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

    ``towers``: laptop, or resnet50 with a clinical BERT, as published, whose rate is halved where evaluations stay
    without a better one. Of a report, one sentence of two words or more is shown at a time.
    """
    size = chosen(GLORIA, towers)
    ten = ScaleSettings(init=10.0, learned=False)
    # Both directions add up where ours are a mean.
    whole = ContrastSettings(name="global", weight=2.0, scale=ten)
    local = replace(whole, name="local", similarity="attended", use_options={"over": "max", "skip": 1})
    words = TextParts(words=True, layers=4, marks="start", unit=False)
    return Recipe(
        name="gloria",
        terms=(whole, local),
        data=StreamSettings(keys="sample", batch=size.batch, augment=size.augment, sentences=True, least_words=2),
        image=replace(size.image, head="affine", parts=ImageParts(stage=3, head="linear", unit=False)),
        text=replace(size.text, pool="mean", parts=words, head="none"),
        width=size.width,
        zero_shot=ZeroShotSettings(ensemble="best", standardise=True),
        optim=size.optim,
        fit=size.fit,
    )


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
                halve=6,
                clip=0.25,
            ),
            fit=FitSettings(epochs=50, patience=10, precision="bf16"),
        ),
    }
)
"""GLoRIA's size and training, as released (chexpert_pretrain_config.yaml)."""
