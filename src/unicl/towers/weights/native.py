"""The two transformers of OpenAI and open_clip as values: from their sizes to our settings, and back."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from timm.layers import GELUTanh, QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from unicl.data.image import Frame
from unicl.towers.heads import HeadKind, Option
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, TextTower
from unicl.towers.weights.published import Published

Act = Literal["quick_gelu", "gelu", "gelu_tanh"]
TheirPool = Literal["argmax", "eos", "last", "first"]

EPS: Final = 1e-5
_NAMED: Final = (
    ((768, 12, 12, 32, 3072), "vit_base_patch32_clip"),
    ((768, 12, 12, 16, 3072), "vit_base_patch16_clip"),
    ((1024, 24, 16, 14, 4096), "vit_large_patch14_clip"),
    ((1280, 32, 16, 14, 5120), "vit_huge_patch14_clip"),
    ((1664, 48, 16, 14, 8192), "vit_gigantic_patch14_clip"),
)
_ANY: Final = "vit_base_patch16_clip"
"""Built with options where timm has no name for the sizes."""
_TEXT_ACTS: Final[tuple[tuple[Act, str], ...]] = (
    ("quick_gelu", "quick_gelu"),
    ("gelu", "gelu"),
    ("gelu_tanh", "gelu_pytorch_tanh"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """A vision transformer: patches without bias, a class token, and ``first_norm`` before the blocks.

    ``inner`` is the width between the two matrices of a block; ``layer_scale`` says that branches are scaled;
    ``mean`` that the embedding is of the mean of the patches, ``mean_first`` that this comes before the last norm.
    """

    width: int
    layers: int
    heads: int
    patch: int
    size: int
    inner: int
    act: Act = "quick_gelu"
    first_norm: bool = True
    layer_scale: bool = False
    mean: bool = False
    mean_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A text transformer with a layer norm before each part, learned positions, and no mask for padding.

    ``pool``: "argmax" reads the highest id, "eos" the first end mark, "last" and "first" these places of the whole
    context; ``inner`` is the width between the two matrices of a block.
    """

    width: int
    layers: int
    heads: int
    inner: int
    context: int
    vocab_size: int
    act: Act = "quick_gelu"
    eps: float = EPS
    causal: bool = True
    pool: TheirPool = "argmax"
    head: HeadKind = "linear"


def vision_settings(vision: Vision, *, frame: Frame) -> ImageSettings:
    """Settings that build it: timm's own name for it where there is one."""
    sizes = (vision.width, vision.layers, vision.heads, vision.patch, vision.inner)
    stem = dict(_NAMED).get(sizes)
    middle = "_quickgelu_" if vision.act == "quick_gelu" else "_"
    options: dict[str, Option] = {} if stem else _sizes(vision)
    if vision.act == "gelu_tanh":
        options["act_layer"] = "gelu_tanh"
    if not vision.first_norm:
        options["pre_norm"] = False
    if vision.layer_scale:
        options["init_values"] = 1e-5
    if vision.mean and not vision.mean_first:
        options["fc_norm"] = False
    return ImageSettings(
        name=f"{stem or _ANY}{middle}224",
        size=vision.size,
        options=options,
        frame=frame,
        pool="avg" if vision.mean else "default",
        head="linear",
    )


def find_vision(settings: ImageSettings, *, width: int) -> Vision | None:
    """The transformer that an image tower for embeddings of ``width`` is, with a linear head, if it is one."""
    if settings.head != "linear" or settings.pool == "map":
        return None
    with torch.device("meta"):
        model = ImageTower(settings, width=width).backbone
    if type(model) is not VisionTransformer or not _is_native(model):
        return None
    block: Any = model.blocks[0]
    return Vision(
        width=model.embed_dim,
        layers=len(model.blocks),
        heads=block.attn.num_heads,
        patch=model.patch_embed.patch_size[0],
        size=settings.size,
        inner=block.mlp.fc1.out_features,
        act=_act(block.mlp.act) or "gelu",
        first_norm=isinstance(model.norm_pre, nn.LayerNorm),
        layer_scale=not isinstance(block.ls1, nn.Identity),
        mean=model.global_pool == "avg",
        mean_first=isinstance(model.fc_norm, nn.LayerNorm),
    )


def words_settings(words: Words, *, tokenizer: str) -> TextSettings:
    """Settings that build it. A tower that reads both ways is padded to its context, and reads the padding."""
    own = "quick_gelu" if words.causal else "gelu_pytorch_tanh"
    act = dict(_TEXT_ACTS)[words.act]
    options: dict[str, Option] = {"hidden_act": act} if act != own else {}
    if words.inner != 4 * words.width:
        options["intermediate_size"] = words.inner
    return TextSettings(
        name="clip" if words.causal else "siglip",
        tokenizer=tokenizer,
        layers=words.layers,
        dim=words.width,
        heads=words.heads,
        context=words.context,
        vocab=words.vocab_size,
        eps=words.eps,
        pool="eos" if words.pool in ("argmax", "eos") else "last" if words.pool == "last" else "cls",
        head=words.head,
        fixed=not words.causal or words.pool == "last",
        options=options,
    )


def find_words(model: Published) -> Words | str:
    """The transformer that a model's text tower is, or in a few words why it is none."""
    if model.text is None:
        return "there is no text tower"
    with torch.device("meta"):
        tower = TextTower(
            model.text, width=model.width, vocab_size=model.vocab_size, eos_id=model.eos_id, pad_id=model.pad_id
        )
    config: Any = tower.backbone.config
    if config.model_type not in ("clip_text_model", "siglip_text_model"):
        return f"the text model is {config.model_type!r}"
    acts: dict[str, Act] = {theirs: ours for ours, theirs in _TEXT_ACTS}
    if config.hidden_act not in acts:
        return f"its activation is {config.hidden_act!r}"
    if not tower.causal and not model.text.fixed:
        return "it reads both ways and does not see padding"
    if model.text.head not in ("linear", "affine", "none"):
        return f"its head is {model.text.head!r}"
    pool = _pool(tower.pool, fixed=model.text.fixed, highest=model.eos_id == model.vocab_size - 1)
    if pool is None:
        return f"it pools {tower.pool!r}"
    return Words(
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        inner=config.intermediate_size,
        context=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        act=acts[config.hidden_act],
        eps=config.layer_norm_eps,
        causal=tower.causal,
        pool=pool,
        head=model.text.head,
    )


def _sizes(vision: Vision) -> dict[str, Option]:
    ratio = vision.inner / vision.width
    # timm cuts the product off.
    exact = ratio if int(vision.width * ratio) == vision.inner else (vision.inner + 0.5) / vision.width
    return {
        "patch_size": vision.patch,
        "embed_dim": vision.width,
        "depth": vision.layers,
        "num_heads": vision.heads,
        **({} if vision.inner == 4 * vision.width else {"mlp_ratio": exact}),
    }


def _is_native(model: Any) -> bool:
    block: Any = model.blocks[0]
    absent = (block.attn.q_norm, block.attn.k_norm, block.attn.norm, block.mlp.norm, model.patch_embed.norm)
    norms = [part for part in (model.norm_pre, model.norm, model.fc_norm, block.norm1) if hasattr(part, "eps")]
    return (
        all(isinstance(part, nn.Identity) for part in absent)
        and all(part.eps == EPS for part in norms)
        and _act(block.mlp.act) is not None
        and model.global_pool in ("token", "avg")
        and (model.num_prefix_tokens, model.attn_pool, model.no_embed_class) == (1, None, False)
        and model.patch_embed.proj.bias is None
        and block.attn.qkv.bias is not None
    )


def _act(part: nn.Module) -> Act | None:
    match part:
        case QuickGELU():
            return "quick_gelu"
        case GELUTanh():
            return "gelu_tanh"
        case nn.GELU(approximate="none"):
            return "gelu"
        case nn.GELU():
            return "gelu_tanh"
        case _:
            return None


def _pool(pool: str, *, fixed: bool, highest: bool) -> TheirPool | None:
    match pool:
        case "eos":
            return "argmax" if highest else "eos"
        case "last" if fixed:
            return "last"
        case "cls":
            return "first"
        case _:
            return None
