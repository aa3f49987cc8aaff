"""Chinese-CLIP's own files (OFA-Sys/Chinese-CLIP, the package cn_clip), both ways.

A file holds ``{epoch, step, name, state_dict, optimizer}``; tensors are ``visual.*`` as in OpenAI's CLIP, ``bert.*``,
``text_projection`` and ``logit_scale``, often all behind "module.". Sizes are told by shapes alone. The code that reads
them squashes pictures to a square and derives the mask of a text from its padding id, as our tokenizer does.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch

from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.towers.heads import HeadKind
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import ROW, TURNED, Rule, Rules, Unused, to_theirs
from unicl.towers.weights.openai import RESNET, RESNETS, VIT
from unicl.towers.weights.published import CLIP_MEAN, CLIP_STD, Published, assembled
from unicl.towers.weights.transformers_files import Framing
from unicl.towers.weights.transformers_images import Vit, clip_image, is_clip, vit_of
from unicl.towers.weights.transformers_texts import bert_text, text_config

NAME: Final = "cn_clip (Chinese-CLIP's .pt)"
VOCABULARY: Final = 21_128
POSITIONS: Final = 512
TYPES: Final = 2
SEP: Final = 102
PAD: Final = 0
CONTEXT: Final = 52
FRAME: Final = Frame(mode="squash")
EPS: Final = 1e-5
BERT_EPS: Final = 1e-12
CLAMPED: Final = "its training keeps the scale between 1 and 100 (the logarithm between 0 and 4.6052)"
_BLOCKS: Final = r"visual\.transformer\.resblocks\.(\d+)\."
_HEAD: Final = 64
_WIDE: Final = (1280, 80)
"""The one width of vision transformers whose heads are wider than 64 (H/14)."""
"""Ours ``(1, 1, F)``, theirs exactly ``(F,)``."""
IMAGE: Final = (Rule(r"image\.backbone\.cls_token", "visual.class_embedding", ROW), *VIT)
TEXT: Final = (
    Rule(r"text\.backbone\.(.+)", r"bert.\1"),
    Rule(r"text\.head\.weight", "text_projection", TURNED),
    Rule("log_scale", "logit_scale"),
)
_NAMES: Final = (
    ((768, 12, 16, 224, 12), "ViT-B-16"),
    ((1024, 24, 14, 224, 12), "ViT-L-14"),
    ((1024, 24, 14, 336, 12), "ViT-L-14-336"),
    ((1280, 32, 14, 224, 24), "ViT-H-14"),
    ((768, 12, 32, 224, 12), "ViT-B-32"),
)
"""Width, blocks, patch and size of the vision transformer and layers of the text tower; cn_clip's name for it."""
UNUSED: Final = (Unused(r"bert\.pooler\.dense\.(weight|bias)", "BERT's pooler, which Chinese-CLIP never reads"),)


def recognises(found: Checkpoint) -> bool:
    """Whether there is a BERT beside an image tower with OpenAI's names."""
    return found.any(r"bert\.") and found.any(r"visual\.") and found.any("text_projection|logit_scale")


def read(found: Checkpoint) -> Published:
    """All five published sizes, ViT-B-32, and any other of their shapes; raises `UserError` for what does not fit."""
    width = _sizes(found, "text_projection")[1]
    image = _image(found)
    config = _bert(found)
    text = chinese_text(config, head="linear")
    model = Published(
        origin=f"Chinese-CLIP (cn_clip), {_name_in(found, image, layers=text.layers) or 'in a size of its own'}",
        source=str(found.place),
        image=image,
        text=text,
        width=width,
        state={},
        mean=CLIP_MEAN,
        std=CLIP_STD,
        eos_id=SEP,
        pad_id=PAD,
        vocab_size=VOCABULARY,
        notes=(CLAMPED,),
    )
    return assembled(found.state, model, rules=_rules(image), unused=UNUSED)


def refusal(model: Published) -> str | None:
    """What cn_clip's classes and its own preprocessing cannot express, or None."""
    if model.image is None or model.text is None or "log_scale" not in model.state:
        return "cn_clip's files hold an image tower, a text tower and a scale; this model has not all three"
    if model.bias is not None:
        return "cn_clip's scores have no bias, this model's have"
    config = bert_of(model)
    if config is None or not _is_theirs(config, head=model.text.head):
        return (
            "cn_clip's text tower is a Chinese BERT (GELU, heads of 64, its first token read, a matrix as head, "
            f"{VOCABULARY} entries, {POSITIONS} positions); this model's is another"
        )
    if problem := _image_refusal(model):
        return problem
    if model.image.frame != FRAME or not _close(model.mean, CLIP_MEAN) or not _close(model.std, CLIP_STD):
        return (
            "cn_clip squashes pictures to a square and normalises them as CLIP does; this model saw them otherwise: "
            "write it for transformers, which keeps the preprocessing"
        )
    return None


def write(model: Published, folder: Path) -> tuple[Path, ...]:
    """One file, under its published name if it has a published size.

    ``cn_clip.clip.load_from_name("ViT-B-16", download_root=folder)`` finds it by that name; for other sizes give it
    to ``cn_clip.clip.model.CLIP``. cn_clip itself rounds weights to half precision when it loads by name.
    """
    assert model.image is not None
    state = to_theirs(model.state, rules=_rules(model.image), source=NAME)
    name = _name_of(model)
    file = folder / (f"clip_cn_{name.lower()}.pt" if name else "clip_cn.pt")
    content = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 0, "step": 0, "name": "unicl", "state_dict": content}, file)
    return (file,)


def _rules(image: ImageSettings) -> Rules:
    return (*(RESNET if _is_resnet(image) else IMAGE), *TEXT)


def chinese_text(config: Any, *, head: HeadKind, tokenizer: str = "chinese") -> TextSettings:
    """A BERT that reads its first token, for texts of at most 52 tokens of the positions that it has."""
    text = bert_text(config, tokenizer=tokenizer, head=head)
    places: int = config.max_position_embeddings
    return replace(text, context=min(CONTEXT, places), options={**text.options, "max_position_embeddings": places})


def bert_of(model: Published) -> Any | None:
    """transformers' configuration of the text tower, if it is a BERT that reads its first token and no padding."""
    if model.text is None or model.text.fixed or model.text.pool not in ("default", "cls"):
        return None
    config = text_config(model)
    return config if config.model_type == "bert" and not config.is_decoder else None


def clip_vit_of(model: Published) -> Vit | None:
    """The sizes of the image tower, if it is CLIP's vision transformer with a matrix as head."""
    if model.image is None or model.image.head != "linear":
        return None
    vit = vit_of(model.image, width=model.width)
    return vit if vit is not None and is_clip(vit) else None


def _name_in(found: Checkpoint, image: ImageSettings, *, layers: int) -> str | None:
    """cn_clip's name of a published size, by shapes alone."""
    if _is_resnet(image):
        return _resnet_name(image, width=_sizes(found, "text_projection")[1], layers=layers)
    features, _, patch, _ = _sizes(found, "visual.conv1.weight", axes=4)
    return dict(_NAMES).get((features, found.count(_BLOCKS), patch, image.size, layers))


def _name_of(model: Published) -> str | None:
    """cn_clip's name of a published size, by the towers."""
    assert model.image is not None
    layers = text_config(model).num_hidden_layers
    if _is_resnet(model.image):
        return _resnet_name(model.image, width=model.width, layers=layers)
    vit = clip_vit_of(model)
    return None if vit is None else dict(_NAMES).get((vit.width, vit.layers, vit.patch, model.image.size, layers))


def _resnet_name(image: ImageSettings, *, width: int, layers: int) -> str | None:
    return "RN50" if (image.name, image.size, width, layers) == ("resnet50_clip", 224, 1024, 3) else None


def _image(found: Checkpoint) -> ImageSettings:
    if found.any(r"visual\.layer1\."):
        return _resnet(found)
    features, _, patch, _ = _sizes(found, "visual.conv1.weight", axes=4)
    places = _sizes(found, "visual.positional_embedding")[0]
    size, heads = round((places - 1) ** 0.5) * patch, _heads(features)
    if heads is None:
        raise UserError(f"{found.place} does not fit: visual.conv1.weight gives {features}, no multiple of {_HEAD}")
    config = SimpleNamespace(
        hidden_size=features,
        num_hidden_layers=found.count(_BLOCKS),
        num_attention_heads=heads,
        intermediate_size=_sizes(found, "visual.transformer.resblocks.0.mlp.c_fc.weight")[0],
        image_size=size,
        patch_size=patch,
        num_channels=3,
        hidden_act="quick_gelu",
        layer_norm_eps=EPS,
    )
    return clip_image(config, framing=Framing(frame=FRAME, size=size, mean=CLIP_MEAN, std=CLIP_STD))


def _heads(features: int) -> int | None:
    """Attention heads of a vision transformer of this width; None if it cannot be cut."""
    size = _WIDE[1] if features == _WIDE[0] else _HEAD
    return None if features % size else features // size


def _is_resnet(image: ImageSettings) -> bool:
    return image.name in {name for _, _, name in RESNETS}


def _resnet(found: Checkpoint) -> ImageSettings:
    blocks = tuple(found.count(rf"visual\.layer{stage}\.(\d+)\.") for stage in range(1, 5))
    width = _sizes(found, "visual.layer1.0.conv1.weight", axes=4)[0]
    name = next((name for *sizes, name in RESNETS if sizes == [blocks, width]), None)
    if name is None:
        raise UserError(
            f"{found.place} has a ResNet of {blocks} blocks, the first {width} wide (visual.layer1.0.conv1.weight); "
            "Chinese-CLIP's RN50 has (3, 4, 6, 3) blocks of 64"
        )
    places = _sizes(found, "visual.attnpool.positional_embedding")[0]
    return ImageSettings(name=name, size=32 * round((places - 1) ** 0.5), frame=FRAME, head="none")


def _bert(found: Checkpoint) -> Any:
    features = _table(found, "word", VOCABULARY)
    for kind, entries in (("position", POSITIONS), ("token_type", TYPES)):
        _table(found, kind, entries)
    if features % _HEAD:
        raise UserError(
            f"{found.place} does not fit: bert.embeddings.word_embeddings.weight gives {features} numbers, no multiple "
            f"of {_HEAD}"
        )
    return SimpleNamespace(
        vocab_size=VOCABULARY,
        hidden_size=features,
        num_hidden_layers=found.count(r"bert\.encoder\.layer\.(\d+)\."),
        num_attention_heads=features // _HEAD,
        intermediate_size=_sizes(found, "bert.encoder.layer.0.intermediate.dense.weight")[0],
        max_position_embeddings=POSITIONS,
        type_vocab_size=TYPES,
        hidden_act="gelu",
        layer_norm_eps=BERT_EPS,
    )


def _table(found: Checkpoint, kind: str, wanted: int) -> int:
    """The width of one of BERT's tables, which must have as many entries as in every model of Chinese-CLIP's."""
    name = f"bert.embeddings.{kind}_embeddings.weight"
    entries, width = _sizes(found, name)
    if entries != wanted:
        raise UserError(f"{found.place} does not fit: {name} has {entries} entries, in Chinese-CLIP {wanted}")
    return width


def _sizes(found: Checkpoint, name: str, *, axes: int = 2) -> tuple[int, ...]:
    shape = found.shape(name)
    if len(shape) != axes:
        raise UserError(f"{found.place} does not fit: {name} is {shape} there, but has {axes} axes in Chinese-CLIP")
    return shape


def _is_theirs(config: Any, *, head: str) -> bool:
    found = (config.vocab_size, config.max_position_embeddings, config.type_vocab_size, config.hidden_act)
    heads = config.num_attention_heads * _HEAD == config.hidden_size
    return heads and (*found, config.layer_norm_eps, head) == (
        VOCABULARY,
        POSITIONS,
        TYPES,
        "gelu",
        BERT_EPS,
        "linear",
    )


def _image_refusal(model: Published) -> str | None:
    image = model.image
    if image is not None and _is_resnet(image) and image.head == "none" and not image.options:
        return None
    vit = clip_vit_of(model)
    theirs = None if vit is None else ("quick_gelu", EPS, 4 * vit.width, _heads(vit.width))
    if vit is not None and (vit.act, vit.eps, vit.inner, vit.heads) == theirs:
        return None
    return (
        "cn_clip's image towers are CLIP's ResNet-50 and CLIP's vision transformer with QuickGELU, heads of 64 and a "
        f"matrix as head; this model's is {image.name if image else None!r}"
    )


def _close(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return all(abs(a - b) < 1e-6 for a, b in zip(first, second, strict=True))
