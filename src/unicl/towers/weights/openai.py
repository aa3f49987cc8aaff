"""The checkpoints of OpenAI's CLIP, both ways: TorchScript archives, and state dicts with the same names.

Sizes are read from the shapes, as its code does (openai/CLIP, clip/model.py, build_model): nothing else is in the file.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isclose
from pathlib import Path
from statistics import mode
from typing import Final

import torch
from torch import Tensor

from unicl.data.image import Frame
from unicl.data.text import is_clips
from unicl.errors import UserError
from unicl.towers.image import ImageSettings
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import ROW, SAME, TABLE, TURNED, Change, Rule, Unused, to_theirs
from unicl.towers.weights.native import (
    EPS,
    Act,
    Vision,
    Words,
    find_vision,
    find_words,
    vision_settings,
    words_settings,
)
from unicl.towers.weights.published import CLIP_MEAN, CLIP_STD, Published, assembled
from unicl.towers.weights.transformers_files import find_tokenizer

NAME: Final = "openai"
FILE: Final = "clip.pt"
HEAD: Final = 64
"""Dimensions of an attention head in every model of OpenAI's."""

SCALAR: Final = Change(ROW.to_ours, SAME.to_theirs)
"""Ours ``()``, theirs ``()`` or ``(1,)``."""
SCALARS: Final = (Rule("log_scale", "logit_scale", SCALAR), Rule("bias", "logit_bias", SCALAR))

_BLOCK: Final = r"image\.backbone\.blocks\.(\d+)"
_THEIRS: Final = r"visual.transformer.resblocks.\1"
VIT: Final = (
    Rule(r"image\.backbone\.cls_token", "visual.class_embedding", ROW),
    Rule(r"image\.backbone\.pos_embed", "visual.positional_embedding", TABLE),
    Rule(r"image\.backbone\.patch_embed\.proj\.(\w+)", r"visual.conv1.\1"),
    Rule(r"image\.backbone\.norm_pre\.(\w+)", r"visual.ln_pre.\1"),
    Rule(r"image\.backbone\.(?:fc_)?norm\.(\w+)", r"visual.ln_post.\1"),
    Rule(rf"{_BLOCK}\.norm(\d)\.(\w+)", rf"{_THEIRS}.ln_\2.\3"),
    Rule(rf"{_BLOCK}\.ls(\d)\.gamma", rf"{_THEIRS}.ls_\2.gamma"),
    Rule(rf"{_BLOCK}\.attn\.qkv\.(\w+)", rf"{_THEIRS}.attn.in_proj_\2"),
    Rule(rf"{_BLOCK}\.attn\.proj\.(\w+)", rf"{_THEIRS}.attn.out_proj.\2"),
    Rule(rf"{_BLOCK}\.mlp\.fc1\.(\w+)", rf"{_THEIRS}.mlp.c_fc.\2"),
    Rule(rf"{_BLOCK}\.mlp\.fc2\.(\w+)", rf"{_THEIRS}.mlp.c_proj.\2"),
    Rule(r"image\.head\.weight", "visual.proj", TURNED),
)
RESNET: Final = (
    Rule(r"image\.backbone\.stem\.conv(\d)\.conv\.(\w+)", r"visual.conv\1.\2"),
    Rule(r"image\.backbone\.stem\.conv(\d)\.bn\.(\w+)", r"visual.bn\1.\2"),
    *(
        Rule(rf"image\.backbone\.stages\.{stage}\.{ours}", rf"visual.layer{stage + 1}.{theirs}")
        for stage in range(4)
        for ours, theirs in (
            (r"(\d+)\.conv(\d)_\w+\.conv\.(\w+)", r"\1.conv\2.\3"),
            (r"(\d+)\.conv(\d)_\w+\.bn\.(\w+)", r"\1.bn\2.\3"),
            (r"(\d+)\.shortcut\.conv\.conv\.(\w+)", r"\1.downsample.0.\2"),
            (r"(\d+)\.shortcut\.conv\.bn\.(\w+)", r"\1.downsample.1.\2"),
        )
    ),
    Rule(r"image\.backbone\.head\.pos_embed", "visual.attnpool.positional_embedding"),
    Rule(r"image\.backbone\.head\.([qkv])\.(\w+)", r"visual.attnpool.\1_proj.\2"),
    Rule(r"image\.backbone\.head\.proj\.(\w+)", r"visual.attnpool.c_proj.\1"),
)
RESNETS: Final = (
    ((3, 4, 6, 3), 64, "resnet50_clip"),
    ((3, 4, 23, 3), 64, "resnet101_clip"),
    ((4, 6, 10, 6), 80, "resnet50x4_clip"),
    ((6, 8, 18, 8), 96, "resnet50x16_clip"),
    ((3, 15, 36, 10), 128, "resnet50x64_clip"),
)
"""Blocks of the four stages, width of the first, and timm's name (CLIP, table 19)."""

_ENTRIES: Final = ("input_resolution", "context_length", "vocab_size")
UNUSED: Final = (
    Unused("|".join(_ENTRIES), "sizes, which the shapes of the weights say too"),
    Unused(r"(?:text\.)?attn_mask", "the causal mask, which is made anew"),
)


def text_rules(prefix: str = "") -> tuple[Rule, ...]:
    """Rules of the text tower, whose names start with ``prefix``; its head may be a bare matrix or have a bias."""
    block, theirs = r"text\.backbone\.(?:text_model\.)?encoder\.layers\.(\d+)", rf"{prefix}transformer.resblocks.\1"
    own = r"text\.backbone\.(?:text_model\.)?"
    return (
        Rule(rf"{own}embeddings\.token_embedding\.weight", f"{prefix}token_embedding.weight"),
        Rule(rf"{own}embeddings\.position_embedding\.weight", f"{prefix}positional_embedding"),
        Rule(rf"{own}final_layer_norm\.(\w+)", rf"{prefix}ln_final.\1"),
        Rule(rf"{block}\.self_attn\.([qkv])_proj\.(\w+)", rf"{theirs}.attn.in_proj_\3#\2"),
        Rule(rf"{block}\.self_attn\.out_proj\.(\w+)", rf"{theirs}.attn.out_proj.\2"),
        Rule(rf"{block}\.layer_norm(\d)\.(\w+)", rf"{theirs}.ln_\2.\3"),
        Rule(rf"{block}\.mlp\.fc1\.(\w+)", rf"{theirs}.mlp.c_fc.\2"),
        Rule(rf"{block}\.mlp\.fc2\.(\w+)", rf"{theirs}.mlp.c_proj.\2"),
        Rule(r"text\.head\.weight", f"{prefix}text_projection", TURNED),
    )


def recognises(found: Checkpoint) -> bool:
    """Whether it is OpenAI's: a TorchScript archive or its three sizes beside the weights, and no configuration."""
    sizes = sum(name in found.state for name in _ENTRIES)
    return (found.scripted or sizes >= 2) and not found.config and is_native(found)


def is_native(found: Checkpoint) -> bool:
    """Whether it has an image and a text tower under OpenAI's names."""
    return found.any(r"visual\.(?!trunk)") and found.any(r"transformer\.resblocks\.|token_embedding|ln_final")


def read(found: Checkpoint) -> Published:
    """Both towers with QuickGELU; raises `UserError` naming what is missing, unexpected or wrongly shaped."""
    words, frame = read_words(found), Frame()
    image = find_resnet(found, frame=frame) if is_resnet(found) else vision_settings(read_vision(found), frame=frame)
    model = Published(
        origin=f"OpenAI CLIP ({'TorchScript archive' if found.scripted else 'state dict'})",
        source=str(found.place),
        image=image,
        text=words_settings(words, tokenizer=find_tokenizer(None, vocab_size=words.vocab_size)),
        width=embedding_width(found),
        state={},
        eos_id=words.vocab_size - 1,
        vocab_size=words.vocab_size,
        notes=("the file says no activation: QuickGELU, as in all of OpenAI's models",),
    )
    return assembled(found.state, model, rules=(*image_rules(found), *text_rules(), *SCALARS), unused=UNUSED)


def image_rules(found: Checkpoint) -> tuple[Rule, ...]:
    """Rules of the image tower that is in the checkpoint: the ResNet's or the vision transformer's."""
    return RESNET if is_resnet(found) else VIT


def is_resnet(found: Checkpoint) -> bool:
    """Whether the image tower is CLIP's ResNet."""
    return found.any(r"visual\.layer\d\.")


def embedding_width(found: Checkpoint, *, prefix: str = "") -> int:
    """D."""
    return size_of(
        found, ("visual.proj", 1), ("visual.attnpool.c_proj.bias", 0), (f"{prefix}text_projection", 1), least=0
    )


def find_resnet(found: Checkpoint, *, frame: Frame) -> ImageSettings:
    """Settings of CLIP's ResNet by the shapes; raises `UserError` if it is none of the published sizes."""
    blocks = tuple(found.count(rf"visual\.layer{stage}\.(\d+)") for stage in (1, 2, 3, 4))
    width = size_of(found, ("visual.layer1.0.conv1.weight", 0), ("visual.bn3.weight", 0), ("visual.conv3.weight", 0))
    name = next((name for layers, first, name in RESNETS if (layers, first) == (blocks, width)), None)
    if name is None:
        known = ", ".join(name for _, _, name in RESNETS)
        raise UserError(
            f"{found.place} has a ResNet of {blocks} blocks and width {width}, which is none of CLIP's: {known}"
        )
    places = size_of(found, ("visual.attnpool.positional_embedding", 0))
    return ImageSettings(name=name, size=32 * round((places - 1) ** 0.5), head="none", frame=frame)


def read_vision(found: Checkpoint, *, heads: int | None = None, act: Act = "quick_gelu") -> Vision:
    """CLIP's vision transformer by the shapes; heads of 64 dimensions unless their number is given."""
    conv, places = "visual.conv1.weight", size_of(found, ("visual.positional_embedding", 0))
    width = size_of(found, ("visual.class_embedding", 0), (conv, 0), ("visual.ln_post.weight", 0))
    patch = size_of(found, (conv, 3), (conv, 2))
    return Vision(
        width=width,
        layers=found.count(r"visual\.transformer\.resblocks\.(\d+)"),
        heads=heads or max(width // HEAD, 1),
        patch=patch,
        size=patch * round((places - 1) ** 0.5),
        inner=_inner(found, "visual."),
        act=act,
    )


def read_words(found: Checkpoint, *, prefix: str = "", heads: int | None = None, act: Act = "quick_gelu") -> Words:
    """CLIP's causal text transformer by the shapes; heads of 64 dimensions unless their number is given."""
    table = f"{prefix}positional_embedding"
    width = size_of(found, (f"{prefix}ln_final.weight", 0), (table, 1), (f"{prefix}token_embedding.weight", 1))
    return Words(
        width=width,
        layers=found.count(rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)"),
        heads=heads or max(width // HEAD, 1),
        inner=_inner(found, prefix),
        context=size_of(found, (table, 0)),
        vocab_size=size_of(found, (f"{prefix}token_embedding.weight", 0)),
        act=act,
    )


def size_of(found: Checkpoint, *places: tuple[str, int], least: int = 1) -> int:
    """One size that several dimensions of tensors should agree on: what most of those that exist say.

    So a tensor of another shape does not hide behind a wrong size, and is named when shapes are compared.
    """
    seen = [found.shape(name)[dim] for name, dim in places if name in found.state and dim < found.state[name].ndim]
    if not seen and least:
        raise UserError(f"{found.place} does not fit the layout it looks like: {places[0][0]} is missing")
    return mode(seen) if seen else 0


def refusal(model: Published) -> str | None:
    """What of the model OpenAI's code could not rebuild from the shapes of the weights."""
    if model.image is None or model.text is None:
        return "OpenAI's layout holds an image tower and a text tower; one is missing"
    # A model's own buffers have the precision of float32.
    shown = zip((*model.mean, *model.std), (*CLIP_MEAN, *CLIP_STD), strict=True)
    if model.image.frame != Frame() or not all(isclose(a, b, rel_tol=1e-6) for a, b in shown):
        return "OpenAI's layout keeps no preprocessing, and this model's is not CLIP's"
    if model.bias is not None:
        return "OpenAI's layout has no place for a bias of the scores"
    if model.tokenizer is not None and not is_clips(model.tokenizer):
        return f"OpenAI's layout knows CLIP's tokenizer only, not {model.tokenizer.name!r}"
    return _image_refusal(model.image, width=model.width) or _text_refusal(model)


def write(model: Published, folder: Path) -> tuple[Path, ...]:
    """Write ``clip.pt``: a state dict in float32 with the three sizes, which OpenAI's build_model rebuilds."""
    assert model.image is not None
    state = native_state(model.state, prefix="")
    sizes = (model.image.size, len(state["positional_embedding"]), len(state["token_embedding.weight"]))
    entries = {name: torch.tensor(size) for name, size in zip(_ENTRIES, sizes, strict=True)}
    torch.save(state | entries, folder / FILE)
    return (folder / FILE,)


def native_state(ours: Mapping[str, Tensor], *, prefix: str) -> dict[str, Tensor]:
    """Our entries under OpenAI's names, those of texts after ``prefix``; raises `UserError` if one has no place."""
    image = RESNET if "image.backbone.head.pos_embed" in ours else VIT
    rules = (*image, *text_rules(prefix), *SCALARS)
    return {key: value.detach().cpu() for key, value in to_theirs(ours, rules=rules, source="OpenAI's layout").items()}


def is_published_resnet(settings: ImageSettings) -> bool:
    """Whether these are settings of one of CLIP's ResNets, whose attention pool makes the embedding."""
    names = [name for _, _, name in RESNETS]
    return settings.name in names and not settings.options and settings.head == "none" and settings.pool == "default"


def _inner(found: Checkpoint, prefix: str) -> int:
    block = f"{prefix}transformer.resblocks.0.mlp."
    return size_of(found, (block + "c_fc.weight", 0), (block + "c_fc.bias", 0), (block + "c_proj.weight", 1))


def _image_refusal(settings: ImageSettings, *, width: int) -> str | None:
    if is_published_resnet(settings):
        return None
    found = find_vision(settings, width=width)
    if found is None:
        return (
            f"OpenAI's layout holds CLIP's ResNets and vision transformers with a linear head, not {settings.name!r} "
            f"with the head {settings.head!r}"
        )
    built = replace(
        found,
        heads=found.width // HEAD,
        inner=4 * found.width,
        act="quick_gelu",
        first_norm=True,
        layer_scale=False,
        mean=False,
        mean_first=False,
    )
    return None if found == built else f"OpenAI's code would build another image tower: {built}, not {found}"


def _text_refusal(model: Published) -> str | None:
    found = find_words(model)
    if isinstance(found, str):
        return f"OpenAI's layout holds CLIP's causal text tower only, and {found}"
    built = replace(
        found,
        heads=found.width // HEAD,
        inner=4 * found.width,
        act="quick_gelu",
        eps=EPS,
        causal=True,
        pool="argmax",
        head="linear",
    )
    return None if found == built else f"OpenAI's code would build another text tower: {built}, not {found}"
