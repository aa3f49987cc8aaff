"""The image towers of transformers' dual models, in our words and back: names of tensors, and sizes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import timm
import torch
from timm.layers import GELU, GELUTanh, QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from unicl.errors import UserError
from unicl.towers.heads import Option
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import ROW, TABLE, Rule, Rules
from unicl.towers.weights.transformers_files import Framing, read_frame

ACTIVATIONS: Final[Mapping[str, str]] = MappingProxyType(
    {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
)
"""transformers' names of activations, with timm's."""

_NAMED: Final = (("base", 768, 12, 12, 3072), ("large", 1024, 24, 16, 4096), ("huge", 1280, 32, 16, 5120))
"""Sizes that timm has a name for: width, layers, heads, and the width inside."""
_PLAIN: Final = re.compile(
    r"cls_token|pos_embed|patch_embed\.proj\.\w+|norm(_pre)?\.\w+|blocks\.\d+\.(norm\d|attn\.(qkv|proj)|mlp\.fc\d)\.\w+"
    r"|attn_pool\.(latent|(q|kv|proj|norm|mlp\.fc\d)\.\w+)"
)
"""Names inside of a vision transformer that transformers has too."""
_CLIP_EPS: Final = 1e-5
_SIGLIP_EPS: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Vit:
    """What a plain vision transformer of timm's is made of; ``act`` in transformers' words."""

    width: int
    layers: int
    heads: int
    inner: int
    patch: int
    act: str
    eps: float
    pool: str
    class_token: bool
    pre_norm: bool
    patch_bias: bool
    qkv_bias: bool


def clip_image(vision: Any, *, framing: Framing) -> ImageSettings:
    """The image tower of a CLIPVisionConfig: timm's vision transformer with CLIP's norm before its blocks."""
    check_square(vision)
    options = vit_options(vision)
    ways = "_quickgelu" if vision.hidden_act == "quick_gelu" else ""
    name = next((f"vit_{n}_patch{vision.patch_size}_clip{ways}_224" for n, *s in _NAMED if s == _sizes(vision)), "")
    known = timm.is_model(name) and vision.hidden_act in ("gelu", "quick_gelu")
    return ImageSettings(
        name=name if known else "vit_base_patch32_clip_224",
        size=vision.image_size,
        options={} if known else options,
        eps=None if vision.layer_norm_eps == _CLIP_EPS else vision.layer_norm_eps,
        frame=framing.frame,
    )


def vit_image(vision: Any, *, framing: Framing) -> ImageSettings:
    """The image tower of a ViTConfig, whose class token goes through a dense layer and tanh."""
    check_square(vision)
    if vision.pooler_act != "tanh" or vision.pooler_output_size != vision.hidden_size:
        raise UserError(
            f"its image tower pools with {vision.pooler_act!r} to {vision.pooler_output_size} numbers; only tanh to "
            f"{vision.hidden_size} can be read"
        )
    options = vit_options(vision) | ({} if vision.qkv_bias else {"qkv_bias": False})
    return ImageSettings(
        name="vit_base_patch16_224",
        size=vision.image_size,
        options=options,
        eps=vision.layer_norm_eps,
        head="pooler",
        frame=framing.frame,
    )


def siglip_image(vision: Any, *, framing: Framing) -> ImageSettings:
    """The image tower of a SiglipVisionConfig: no class token, a learned query at the end."""
    check_square(vision)
    return ImageSettings(
        name="vit_base_patch16_siglip_224",
        size=vision.image_size,
        options=vit_options(vision),
        eps=None if vision.layer_norm_eps == _SIGLIP_EPS else vision.layer_norm_eps,
        head="none",
        frame=framing.frame,
    )


def clip_image_rules(place: str = "vision_model") -> Rules:
    """CLIPVisionModel's names below ``place``."""
    return (
        Rule(r"image\.backbone\.cls_token", f"{place}.embeddings.class_embedding", ROW),
        Rule(r"image\.backbone\.pos_embed", f"{place}.embeddings.position_embedding.weight", TABLE),
        Rule(r"image\.backbone\.patch_embed\.proj\.(\w+)", rf"{place}.embeddings.patch_embedding.\1"),
        Rule(r"image\.backbone\.norm_pre\.(\w+)", rf"{place}.pre_layrnorm.\1"),
        Rule(r"image\.backbone\.norm\.(\w+)", rf"{place}.post_layernorm.\1"),
        Rule(r"image\.backbone\.blocks\.(\d+)\.norm(\d)\.(\w+)", rf"{place}.encoder.layers.\1.layer_norm\2.\3"),
        Rule(
            r"image\.backbone\.blocks\.(\d+)\.attn\.qkv\.(\w+)",
            rf"{place}.encoder.layers.\1.self_attn.{{q,k,v}}_proj.\2",
        ),
        Rule(r"image\.backbone\.blocks\.(\d+)\.attn\.proj\.(\w+)", rf"{place}.encoder.layers.\1.self_attn.out_proj.\2"),
        Rule(r"image\.backbone\.blocks\.(\d+)\.mlp\.(fc\d)\.(\w+)", rf"{place}.encoder.layers.\1.mlp.\2.\3"),
        Rule(r"image\.head\.weight", "visual_projection.weight"),
    )


def vit_image_rules(place: str = "vision_model") -> Rules:
    """ViTModel's names below ``place``."""
    layer = rf"{place}.encoder.layer.\1"
    return (
        Rule(r"image\.backbone\.cls_token", f"{place}.embeddings.cls_token"),
        Rule(r"image\.backbone\.pos_embed", f"{place}.embeddings.position_embeddings"),
        Rule(r"image\.backbone\.patch_embed\.proj\.(\w+)", rf"{place}.embeddings.patch_embeddings.projection.\1"),
        Rule(r"image\.backbone\.norm\.(\w+)", rf"{place}.layernorm.\1"),
        Rule(r"image\.backbone\.blocks\.(\d+)\.norm1\.(\w+)", rf"{layer}.layernorm_before.\2"),
        Rule(r"image\.backbone\.blocks\.(\d+)\.norm2\.(\w+)", rf"{layer}.layernorm_after.\2"),
        Rule(
            r"image\.backbone\.blocks\.(\d+)\.attn\.qkv\.(\w+)", rf"{layer}.attention.attention.{{query,key,value}}.\2"
        ),
        Rule(r"image\.backbone\.blocks\.(\d+)\.attn\.proj\.(\w+)", rf"{layer}.attention.output.dense.\2"),
        Rule(r"image\.backbone\.blocks\.(\d+)\.mlp\.fc1\.(\w+)", rf"{layer}.intermediate.dense.\2"),
        Rule(r"image\.backbone\.blocks\.(\d+)\.mlp\.fc2\.(\w+)", rf"{layer}.output.dense.\2"),
        Rule(r"image\.head\.0\.(\w+)", rf"{place}.pooler.dense.\1"),
        Rule(r"image\.head\.2\.weight", "visual_projection.weight"),
    )


def vit_options(vision: Any) -> dict[str, Option]:
    """timm's arguments for the sizes of a vision transformer's configuration."""
    if vision.hidden_act not in ACTIVATIONS:
        raise UserError(f"its image tower uses {vision.hidden_act!r}; known are {', '.join(ACTIVATIONS)}")
    if vision.num_channels != 3:
        raise UserError(f"its images have {vision.num_channels} channels; only pictures with 3 can be read")
    width, inner = vision.hidden_size, vision.intermediate_size
    # timm cuts width times ratio to a whole number, which a quotient just below it would lose.
    ratio = inner / width if int(width * (inner / width)) == inner else (inner + 0.5) / width
    return {
        "embed_dim": width,
        "depth": vision.num_hidden_layers,
        "num_heads": vision.num_attention_heads,
        "patch_size": vision.patch_size,
        "mlp_ratio": ratio,
        "act_layer": ACTIVATIONS[vision.hidden_act],
    }


def check_square(vision: Any) -> None:
    """Raises `UserError` if the pictures or patches of a configuration are no squares."""
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(vision, name), int):
            raise UserError(
                f"its image tower has {name} {getattr(vision, name)}; only squares, one number, can be read"
            )


def vit_of(settings: ImageSettings, *, width: int) -> Vit | None:
    """The parts of an image tower, if it is a vision transformer with nothing special in it."""
    with torch.device("meta"):
        model: Any = ImageTower(settings, width=width).backbone
    if type(model) is not VisionTransformer or not all(_PLAIN.fullmatch(key) for key in model.state_dict()):
        return None
    block, places = model.blocks[0], model.patch_embed.num_patches + int(model.cls_token is not None)
    act = {GELU: "gelu", nn.GELU: "gelu", QuickGELU: "quick_gelu", GELUTanh: "gelu_pytorch_tanh"}.get(
        type(block.mlp.act)
    )
    eps = {part.eps for part in model.modules() if isinstance(part, nn.LayerNorm)}
    biased = block.attn.proj.bias is not None and block.mlp.fc1.bias is not None
    ends = isinstance(model.norm, nn.LayerNorm) and model.pos_embed is not None and model.pos_embed.shape[1] == places
    if act is None or not biased or not ends or len(eps) != 1:
        return None
    return Vit(
        width=model.embed_dim,
        layers=len(model.blocks),
        heads=block.attn.num_heads,
        inner=block.mlp.fc1.out_features,
        patch=model.patch_embed.patch_size[0],
        act=act,
        eps=eps.pop(),
        pool=model.global_pool,
        class_token=model.cls_token is not None,
        pre_norm=isinstance(model.norm_pre, nn.LayerNorm),
        patch_bias=model.patch_embed.proj.bias is not None,
        qkv_bias=block.attn.qkv.bias is not None,
    )


def is_clip(vit: Vit) -> bool:
    """Whether CLIPVisionModel has all of these parts and no other."""
    return vit.pre_norm and vit.class_token and vit.pool == "token" and not vit.patch_bias and vit.qkv_bias


def is_plain(vit: Vit) -> bool:
    """Whether ViTModel has all of these parts and no other."""
    return not vit.pre_norm and vit.class_token and vit.pool == "token" and vit.patch_bias


def vision_fields(vit: Vit, *, size: int) -> dict[str, Any]:
    """A vision transformer's sizes as fields of transformers' configurations."""
    return {
        "hidden_size": vit.width,
        "intermediate_size": vit.inner,
        "num_hidden_layers": vit.layers,
        "num_attention_heads": vit.heads,
        "patch_size": vit.patch,
        "image_size": size,
        "hidden_act": vit.act,
        "layer_norm_eps": vit.eps,
    }


def framing_of(found: Checkpoint, *, size: int, otherwise: Framing | None = None) -> Framing:
    """The preprocessing of a folder, whose crop must be the ``size`` that the image tower was built for.

    Without a file it is ``otherwise``, or CLIP's. Raises `UserError` if the sizes differ.
    """
    framing = read_frame(found.folder, size=size, otherwise=otherwise)
    if framing.size != size:
        raise UserError(
            f"{found.place} cuts pictures to {framing.size} pixels, but its image tower reads {size}; one of "
            "preprocessor_config.json and config.json is wrong"
        )
    return framing


def _sizes(vision: Any) -> list[int]:
    return [vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size]
