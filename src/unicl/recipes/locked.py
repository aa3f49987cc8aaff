"""Systems whose image tower was trained before and is locked, at first or for good: LiT, Chinese-CLIP, BertCLIP."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, Literal, get_args

from unicl.data.image import Augment, Frame
from unicl.data.stream import StreamSettings
from unicl.errors import UserError
from unicl.objective.peers import Gather
from unicl.objective.terms import ContrastSettings, DistillSettings
from unicl.recipes.recipe import DEFAULT_IMAGE, Recipe, Size, chosen, known
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.train.learning import Learning
from unicl.train.loop import FitSettings
from unicl.train.optim import OptimSettings
from unicl.train.stages import Plateau, Stage

Setting = Literal["LL", "LU", "Lu", "UL", "UU", "Uu", "uL", "uU", "uu"]


def lit(*, towers: str = "laptop", setting: Setting = "Lu", text: str = "bert", batch: int | None = None) -> Recipe:
    """LiT (Zhai et al. 2022): texts learn to match an image tower that was trained before and stays as it is.

    ``setting``: a letter for images, one for texts: L locked, U trained before, u from random weights. ``text``: bert,
    t5, mt5 or siglip (LiT's own transformer). ``towers``: laptop, or b32, b16 and l16 as they were trained on CC12M.
    """
    size = chosen(LIT, towers)
    known(setting, among=get_args(Setting), argument="setting")
    picture, words = setting
    return Recipe(
        name="lit",
        terms=(ContrastSettings(scale=ScaleSettings(init=10.0, max=None)),),
        data=StreamSettings(keys="sample", batch=batch or size.batch, augment=size.augment),
        image=replace(size.image, locked=picture == "L", weights="random" if picture == "u" else size.image.weights),
        text=replace(_lit_text(text, towers=towers, fresh=words == "u"), locked=words == "L"),
        width=None,
        optim=size.optim,
        fit=size.fit,
    )


def chinese_clip(
    *, towers: str = "laptop", gather: Gather = "exact", teacher: str | None = None, batch: int | None = None
) -> Recipe:
    """Chinese-CLIP (Yang et al. 2022): first a Chinese text tower learns to match CLIP's locked image tower, then both.

    The first stage ends when the mean recall on --val no longer improves. ``towers``: laptop, or rn50, b16, l14,
    l14_336 and h14 as published. ``teacher``: a model whose image vectors are learned from as well. ``gather``: see
    `ContrastSettings`; the released code's is "detached", or "none" with its --skip-aggregate.
    """
    size = chosen(CHINESE_CLIP, towers)
    contrast = ContrastSettings(gather=gather, scale=ScaleSettings(init=size.scale, min=1.0))
    return Recipe(
        name="chinese_clip",
        terms=(contrast,) if teacher is None else (contrast, DistillSettings(teacher=teacher)),
        data=StreamSettings(keys="sample", batch=batch or size.batch, augment=size.augment),
        image=replace(size.image, frame=Frame(mode="squash")),
        text=replace(size.text, context=52, pool="cls"),
        width=size.width,
        optim=size.optim,
        fit=size.fit,
        stages=size.stages if batch is None else tuple(replace(stage, batch=None) for stage in size.stages),
    )


def bert_clip(*, towers: str = "laptop", gather: Gather = "exact", batch: int | None = None) -> Recipe:
    """BertCLIP (CLIP-Chinese): a Chinese BERT, read through its pooler, learns to match CLIP's locked image tower.

    CLIP's projection of images learns too. ``towers``: laptop, or b32 as released. ``gather``: what is compared with
    the rows of other processes; "none" is the released code's.
    """
    size = chosen(BERT_CLIP, towers)
    return Recipe(
        name="bert_clip",
        terms=(ContrastSettings(gather=gather, scale=ScaleSettings(init=size.scale, max=None)),),
        data=StreamSettings(keys="sample", batch=batch or size.batch, augment=size.augment),
        image=replace(size.image, locked=True),
        text=replace(size.text, context=100, pool="cls", head="pooler"),
        width=size.width,
        optim=size.optim,
        fit=size.fit,
    )


def _lit_text(text: str, *, towers: str, fresh: bool) -> TextSettings:
    known(text, among=LIT_TEXTS, argument="text")
    size, kind = LIT[towers].text, LIT_TEXTS[text]
    if fresh:
        return replace(kind, layers=size.layers, dim=size.dim, heads=size.heads, vocab=size.vocab)
    if text in HUB:
        return replace(kind, name=HUB[text], tokenizer="", weights="hub")
    if text == "bert":
        return LIT_TRAINED[towers]
    raise UserError("LiT's own transformer was not published without its pair; give a setting with u for texts")


LIT_TEXTS: Final[Mapping[str, TextSettings]] = MappingProxyType(
    {
        "bert": TextSettings(name="bert", context=16, pool="cls", head="affine", end="none", eps=1e-12),
        "siglip": TextSettings(name="siglip", context=16, pool="last", head="affine", end="filled", eps=1e-6),
        "t5": TextSettings(name="t5", context=16, pool="last", head="affine", eps=1e-6),
        "mt5": TextSettings(name="mt5", context=16, pool="last", head="affine", eps=1e-6),
    }
)
"""LiT's text towers (section 5.4): 16 tokens; a BERT reads [CLS] and no [SEP], others their last token."""
HUB: Final[Mapping[str, str]] = MappingProxyType({"t5": "google-t5/t5-base", "mt5": "google/mt5-base"})
_BERT: Final = replace(LIT_TEXTS["bert"], tokenizer="", weights="hub")
LIT_TRAINED: Final[Mapping[str, TextSettings]] = MappingProxyType(
    {
        "laptop": replace(_BERT, name="package:minilm", weights="package:minilm", pool="mean", end="mark"),
        "b32": replace(_BERT, name="google-bert/bert-base-uncased"),
        "b16": replace(_BERT, name="google-bert/bert-base-uncased"),
        "l16": replace(_BERT, name="google-bert/bert-large-uncased"),
    }
)
"""The BERTs that were trained before."""

BASE: Final = TextSettings(name="bert", layers=12, dim=768, heads=12, vocab=32_000)
LARGE: Final = replace(BASE, layers=24, dim=1024, heads=16)
SQUARE: Final = Frame(mode="squash", interpolation="bilinear")
# The paper's decay of 1e-4 does not go through the learning rate of 1e-3, as AdamW's does.
_LIT: Final = OptimSettings(lr=1e-3, weight_decay=0.1, decay_embeddings=False, beta2=0.999, eps=1e-8, warmup=2000)
_CC12M: Final = Size(
    image=ImageSettings(head="none", frame=SQUARE, weights="hub"),
    text=BASE,
    batch=16_384,
    augment=Augment(crop=(0.05, 1.0)),
    optim=_LIT,
    fit=FitSettings(epochs=20, precision="bf16"),
)

LIT: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": Size(
            image=replace(DEFAULT_IMAGE, head="none", frame=SQUARE), augment=None, optim=replace(_LIT, warmup=0.1)
        ),
        "b32": replace(_CC12M, image=replace(_CC12M.image, name="vit_base_patch32_224.augreg_in21k")),
        "b16": replace(_CC12M, image=replace(_CC12M.image, name="vit_base_patch16_224.augreg_in21k")),
        "l16": replace(_CC12M, image=replace(_CC12M.image, name="vit_large_patch16_224.augreg_in21k"), text=LARGE),
    }
)
"""LiT's sizes and its training on CC12M (section 4.2); where it took Adafactor (large texts), this is AdamW.

A laptop's pictures are not augmented, so that the locked tower sees each of them once.
"""

CUT: Final = Augment(crop=(0.9, 1.0), policy="autoaugment")
_WORDS: Final = TextSettings(name="bert", tokenizer="chinese", layers=4, dim=256, heads=4)
_ROBERTA: Final = TextSettings(name="hfl/chinese-roberta-wwm-ext", tokenizer="chinese", weights="hub", dropout=0.1)
_LOCKED: Final = Stage(name="texts", image=Learning(part="none"), plateau=Plateau(metric="retrieval/mean_recall"))
_BOTH: Final = Stage(name="both", rate=0.2)
_CHINESE: Final = OptimSettings(lr=1e-4, weight_decay=1e-3, beta1=0.9, beta2=0.98, eps=1e-6, warmup=5000)
_B16: Final = Size(
    image=ImageSettings(name="vit_base_patch16_clip_quickgelu_224", weights="openai/clip-vit-base-patch16"),
    text=_ROBERTA,
    width=512,
    scale=100.0,
    batch=32_768,
    augment=CUT,
    optim=_CHINESE,
    fit=FitSettings(epochs=44, precision="bf16"),
    stages=(replace(_LOCKED, epochs=44), replace(_BOTH, epochs=15, batch=16_384)),
)
_L14: Final = replace(
    _B16,
    image=ImageSettings(name="vit_large_patch14_clip_quickgelu_224", weights="openai/clip-vit-large-patch14"),
    width=768,
    stages=(replace(_LOCKED, epochs=64), replace(_BOTH, epochs=7, batch=4608)),
)

CHINESE_CLIP: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": Size(
            text=_WORDS,
            augment=CUT,
            # CLIP's projection is not there to begin with, so that one has to learn.
            stages=(replace(_LOCKED, image=Learning(part="head"), plateau=Plateau(patience=2)), _BOTH),
        ),
        "rn50": replace(
            _B16,
            image=ImageSettings(name="resnet50_clip.openai", head="none", weights="hub"),
            text=replace(_ROBERTA, name="hfl/rbt3"),
            width=1024,
            optim=replace(_CHINESE, beta2=0.999, eps=1e-8),
            stages=(replace(_LOCKED, epochs=20), replace(_BOTH, epochs=44, batch=16_384)),
        ),
        "b16": _B16,
        "l14": _L14,
        "l14_336": replace(_L14, stages=(*_L14.stages, replace(_BOTH, name="336 pixels", epochs=2, size=336))),
        "h14": replace(
            _B16,
            image=ImageSettings(
                name="vit_huge_patch14_clip_quickgelu_224",
                weights="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
                checkpointing=True,
            ),
            text=replace(_ROBERTA, name="hfl/chinese-roberta-wwm-ext-large"),
            width=1024,
            stages=(replace(_LOCKED, epochs=26), replace(_BOTH, epochs=7)),
        ),
    }
)
"""Chinese-CLIP's sizes and stages (section 3 and appendix): the second stage has a fifth of the first one's rate."""

BERT_CLIP: Final[Mapping[str, Size]] = MappingProxyType(
    {
        "laptop": Size(text=_WORDS),
        "b32": Size(
            image=ImageSettings(name="vit_base_patch32_clip_quickgelu_224", weights="openai/clip-vit-base-patch32"),
            text=TextSettings(name="Langboat/mengzi-bert-base", tokenizer="chinese", weights="hub", dropout=0.1),
            width=512,
            scale=100.0,
            batch=768,
            augment=None,
            optim=OptimSettings(lr=5e-5, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8, warmup=1000),
            fit=FitSettings(epochs=50, precision="bf16"),
        ),
    }
)
"""BertCLIP's size and training on 1.4 M pairs, as released."""
