"""The checkpoints of open_clip: native, timm and transformers towers, alone or in a folder with open_clip_config.json.

Without its configuration, a checkpoint is taken for what most are: CLIP's towers with GELU and CLIP's preprocessing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from unicl.data.image import Frame, FrameMode
from unicl.errors import UserError
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.parts import without_parts
from unicl.towers.weights import open_clip_texts, openai
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Rules, Unused, to_ours
from unicl.towers.weights.native import EPS, Act, vision_settings
from unicl.towers.weights.published import CLIP_MEAN, CLIP_STD, Published, assembled

NAME: Final = "open_clip"
CONFIG: Final = "open_clip_config.json"
MODES: Final[tuple[tuple[str, FrameMode], ...]] = (("shortest", "crop"), ("longest", "pad"), ("squash", "squash"))
POOLS: Final = (("", "default"), ("avg", "avg"), ("token", "token"), ("map", "map"))
"""timm_pool of open_clip, and `ImageSettings.pool`."""

_VISION: Final = (
    "layers width head_width mlp_ratio patch_size image_size ls_init_value patch_dropout attn_pooler_queries "
    "attn_pooler_heads no_ln_pre pos_embed_type final_ln_after_pool pool_type output_tokens act_kwargs norm_kwargs "
    "timm_model_name timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop timm_drop_path"
)
_UNUSED: Final = (*openai.UNUSED, Unused(r"text\.transformer\.(?:\w+\.)*position_ids", "numbers of places, made anew"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Images:
    """An image tower as read: how it is built, and where its tensors are."""

    settings: ImageSettings
    rules: Rules
    more: Mapping[str, Tensor]


def recognises(found: Checkpoint) -> bool:
    """Whether it is open_clip's: by its configuration, or by the names of both towers."""
    if "vision_cfg" in config_of(found):
        return True
    texts = r"(?:text\.)?(?:transformer\.resblocks|token_embedding|ln_final)\.|text\.transformer\."
    return not found.config and found.any(r"visual\.") and found.any(texts)


def read(found: Checkpoint) -> Published:
    """Both towers with the preprocessing of the configuration, or CLIP's without one.

    Raises `UserError` naming what is missing, unexpected, wrongly shaped or not known in the configuration.
    """
    config = config_of(found)
    frame, mean, std = _preprocessing(_section(found, "preprocess_cfg"))
    width = embedding_width(found, config)
    images = _images(found, config, frame=frame, width=width)
    texts = open_clip_texts.read_texts(found, config, act=_act(config, "text_cfg"))
    model = Published(
        origin=f"open_clip ({'folder' if config else 'state dict'})",
        source=str(found.place),
        image=images.settings,
        text=texts.settings,
        width=width,
        state={},
        mean=mean,
        std=std,
        eos_id=texts.eos_id,
        pad_id=texts.pad_id,
        vocab_size=texts.vocab_size,
        tokenizer=texts.tokenizer,
        notes=() if config else _ASSUMED,
    )
    rules = (*images.rules, *texts.rules, *openai.SCALARS)
    state = {**found.state, **images.more}
    return assembled(state, model, rules=rules, unused=_UNUSED, bias="logit_bias" in state)


_ASSUMED: Final = (
    "no open_clip_config.json beside the weights: taken for GELU, heads of 64 dimensions, a causal text tower, and "
    "CLIP's preprocessing and tokenizer; put the configuration into the folder if it was trained otherwise "
    '(QuickGELU, as OpenAI\'s weights: "quick_gelu": true)',
)


def config_of(found: Checkpoint) -> Mapping[str, Any]:
    """The ``model_cfg`` of a checkpoint's open_clip_config.json; empty if there is none."""
    content = _section(found, "model_cfg")
    return content if {"vision_cfg", "text_cfg"} <= set(content) else {}


def embedding_width(found: Checkpoint, config: Mapping[str, Any]) -> int:
    """D, by the configuration or by the heads."""
    prefix = prefix_of(found)
    places = ((f"{prefix}text_projection", 1), ("visual.proj", 1), ("visual.attnpool.c_proj.bias", 0))
    return int(config.get("embed_dim") or openai.size_of(found, *places))


def prefix_of(found: Checkpoint) -> str:
    """What the names of the text tower start with: "text." in a CustomTextCLIP."""
    return "text." if found.any(r"text\.") else ""


def is_quick(found: Checkpoint) -> bool | None:
    """Whether the towers have QuickGELU: OpenAI's do, a configuration says so; None if nothing does."""
    if openai.recognises(found):
        return True
    config = config_of(found)
    return bool(config.get("quick_gelu")) if config else None


def tower_state(state: Mapping[str, Tensor], tower: nn.Module, *, side: str, source: str) -> dict[str, Tensor]:
    """The state dict of a tower that the user named, out of OpenAI's or open_clip's; its buffers stay as they are.

    ``side`` is "image" or "text". Raises `UserError` naming what is missing, unexpected or wrongly shaped.
    """
    own = tower.state_dict()
    buffers = {key: value for key, value in own.items() if key in ("mean", "std")}
    wanted = {f"{side}.{key}": value for key, value in without_parts(own).items() if key not in buffers}
    scalars = "logit_scale|logit_bias"
    theirs = {k: v for k, v in state.items() if k.startswith("visual.") == (side == "image")}
    theirs = {k: v for k, v in theirs.items() if k not in scalars.split("|")}
    rules = _image_rules(state, tower) if side == "image" else open_clip_texts.tower_rules(state)
    found, _ = to_ours(theirs, wanted=wanted, rules=rules, unused=_UNUSED, source=source)
    return {key.removeprefix(f"{side}."): value for key, value in found.items()} | buffers


def _section(found: Checkpoint, name: str) -> Mapping[str, Any]:
    content = found.config
    if "model_cfg" not in content:
        file = (found.folder or found.place.parent) / CONFIG
        content = _read(file) if file.is_file() and found.any(r"visual\.") else {}
    section = content.get(name, {})
    return section if isinstance(section, Mapping) else {}


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    return content if isinstance(content, Mapping) else {}


def _act(config: Mapping[str, Any], side: str) -> Act:
    if (config.get(side, {}).get("act_kwargs") or {}).get("approximate") == "tanh":
        return "gelu_tanh"
    return "quick_gelu" if config.get("quick_gelu") else "gelu"


def _preprocessing(section: Mapping[str, Any]) -> tuple[Frame, tuple[float, float, float], tuple[float, float, float]]:
    mode = section.get("resize_mode") or "shortest"
    if mode not in dict(MODES) or section.get("fill_color"):
        raise UserError(
            f"{CONFIG} asks for resize_mode {mode!r} and fill_color {section.get('fill_color')}; known are "
            f"{', '.join(dict(MODES))}, and black"
        )
    # open_clip takes "random" for bicubic when it does not train.
    ways = "bilinear" if section.get("interpolation") == "bilinear" else "bicubic"
    frame = Frame(mode=dict(MODES)[mode], interpolation="bilinear" if ways == "bilinear" else "bicubic")
    return frame, _triple(section.get("mean"), CLIP_MEAN), _triple(section.get("std"), CLIP_STD)


def _triple(values: Any, otherwise: tuple[float, float, float]) -> tuple[float, float, float]:
    if values is None:
        return otherwise
    red, green, blue = values
    return float(red), float(green), float(blue)


def _images(found: Checkpoint, config: Mapping[str, Any], *, frame: Frame, width: int) -> _Images:
    vision = config.get("vision_cfg", {})
    open_clip_texts.check_fields(vision, known=_VISION, what=f"the image tower in {found.place}")
    if vision.get("timm_model_name") or found.any(r"visual\.trunk\."):
        return _trunk(found, vision, frame=frame, width=width)
    if openai.is_resnet(found):
        return _Images(settings=openai.find_resnet(found, frame=frame), rules=openai.RESNET, more={})
    return _transformer(found, vision, frame=frame, act=_act(config, "vision_cfg"))


def _transformer(found: Checkpoint, vision: Mapping[str, Any], *, frame: Frame, act: Act) -> _Images:
    if (vision.get("norm_kwargs") or {}).get("eps", EPS) != EPS:
        raise UserError(f"{found.place} wants layer norms with {vision['norm_kwargs']}, but timm's CLIP has eps {EPS}")
    plain = openai.read_vision(found, act=act)
    heads = plain.width // int(vision["head_width"]) if vision.get("head_width") else plain.heads
    read = replace(
        plain,
        heads=heads,
        first_norm=not vision.get("no_ln_pre"),
        layer_scale=vision.get("ls_init_value") is not None,
        mean=vision.get("pool_type", "tok") == "avg",
        mean_first=bool(vision.get("final_ln_after_pool")),
    )
    # Without a norm behind it, timm's patch embedding has a bias.
    more = {} if read.first_norm else {"visual.conv1.bias": torch.zeros(read.width)}
    return _Images(settings=vision_settings(read, frame=frame), rules=openai.VIT, more=more)


def _trunk(found: Checkpoint, vision: Mapping[str, Any], *, frame: Frame, width: int) -> _Images:
    name = vision.get("timm_model_name")
    if not name:
        raise UserError(
            f"{found.place} has a timm model as image tower and does not say which; put its {CONFIG} beside it in a "
            "folder, and give the folder"
        )
    pool, proj = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
    if pool not in dict(POOLS) or (proj == "mlp" and vision.get("timm_proj_bias")):
        raise UserError(f"{found.place} has timm_pool {pool!r} and timm_proj {proj!r}, which no image tower here has")
    head = {"linear": "affine" if vision.get("timm_proj_bias") else "linear", "mlp": "gelu_double", "none": "none"}
    settings = ImageSettings(
        name=name,
        size=_side(vision.get("image_size", 224)),
        frame=frame,
        pool=dict(POOLS)[pool],  # type: ignore[arg-type]
        head=head.get(proj, "affine"),  # type: ignore[arg-type]
    )
    tower = _built(settings, width=width)
    if any(key.startswith("backbone.fc_norm.") for key in tower.state_dict()) and not found.any(
        r"visual.trunk.fc_norm"
    ):
        # open_clip pools after the norm, where timm left it when the model was made.
        settings = replace(settings, options={"fc_norm": False})
        tower = _built(settings, width=width)
    return _Images(settings=settings, rules=trunk_rules(tower, head=str(proj or "")), more={})


def _built(settings: ImageSettings, *, width: int) -> ImageTower:
    with torch.device("meta"):
        return ImageTower(settings, width=width)


def _side(size: Any) -> int:
    if isinstance(size, int):
        return size
    height, width = size
    if height != width:
        raise UserError(f"image_size is {height} x {width}, and image towers here read squares")
    return int(height)


def trunk_rules(tower: nn.Module, *, head: str) -> Rules:
    """Rules of a timm tower; ``head`` is open_clip's timm_proj, or "" where timm's classifier makes the embedding."""
    backbone: Any = tower.get_submodule("backbone")
    classifier = backbone.pretrained_cfg["classifier"]
    heads: dict[str, Rules] = {
        "linear": (Rule(r"image\.head\.(weight|bias)", r"visual.head.proj.\1"),),
        "mlp": (
            Rule(r"image\.head\.0\.(weight|bias)", r"visual.head.mlp.fc1.\1"),
            Rule(r"image\.head\.2\.weight", "visual.head.mlp.fc2.weight"),
        ),
        "": (Rule(r"image\.head\.(weight|bias)", rf"visual.trunk.{classifier}.\1"),),
    }
    return (Rule(r"image\.backbone\.(.+)", r"visual.trunk.\1"), *heads.get(head, ()))


def _image_rules(state: Mapping[str, Tensor], tower: nn.Module) -> Rules:
    if any(key.startswith("visual.trunk.") for key in state):
        head = (
            "linear" if "visual.head.proj.weight" in state else "mlp" if "visual.head.mlp.fc1.weight" in state else ""
        )
        return trunk_rules(tower, head=head)
    return openai.RESNET if any(key.startswith("visual.layer1.") for key in state) else openai.VIT
