"""The layout of OpenAI's and open_clip's checkpoints, both ways."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from unicl.errors import UserError

Rules = tuple[tuple[str, str], ...]
"""Patterns of our names with what theirs are."""

_VIT: Final[Rules] = (
    (r"backbone\.cls_token", "visual.class_embedding"),
    (r"backbone\.pos_embed", "visual.positional_embedding"),
    (r"backbone\.patch_embed\.proj\.weight", "visual.conv1.weight"),
    (r"backbone\.norm_pre\.(\w+)", r"visual.ln_pre.\1"),
    (r"backbone\.norm\.(\w+)", r"visual.ln_post.\1"),
    (r"backbone\.blocks\.(\d+)\.norm(\d)\.(\w+)", r"visual.transformer.resblocks.\1.ln_\2.\3"),
    (r"backbone\.blocks\.(\d+)\.attn\.qkv\.(\w+)", r"visual.transformer.resblocks.\1.attn.in_proj_\2"),
    (r"backbone\.blocks\.(\d+)\.attn\.proj\.(\w+)", r"visual.transformer.resblocks.\1.attn.out_proj.\2"),
    (r"backbone\.blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"visual.transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"backbone\.blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"visual.transformer.resblocks.\1.mlp.c_proj.\2"),
    (r"head\.weight", "visual.proj"),
)
_RESNET: Final[Rules] = (
    (r"backbone\.stem\.conv(\d)\.conv\.(\w+)", r"visual.conv\1.\2"),
    (r"backbone\.stem\.conv(\d)\.bn\.(\w+)", r"visual.bn\1.\2"),
    *(
        (rf"backbone\.stages\.{stage}\.{ours}", rf"visual.layer{stage + 1}.{theirs}")
        for stage in range(4)
        for ours, theirs in (
            (r"(\d+)\.conv(\d)_\w+\.conv\.(\w+)", r"\1.conv\2.\3"),
            (r"(\d+)\.conv(\d)_\w+\.bn\.(\w+)", r"\1.bn\2.\3"),
            (r"(\d+)\.shortcut\.conv\.conv\.(\w+)", r"\1.downsample.0.\2"),
            (r"(\d+)\.shortcut\.conv\.bn\.(\w+)", r"\1.downsample.1.\2"),
        )
    ),
    (r"backbone\.head\.pos_embed", "visual.attnpool.positional_embedding"),
    (r"backbone\.head\.([qkv])\.(\w+)", r"visual.attnpool.\1_proj.\2"),
    (r"backbone\.head\.proj\.(\w+)", r"visual.attnpool.c_proj.\1"),
)
_TRUNK: Final[Rules] = (
    (r"backbone\.(.+)", r"visual.trunk.\1"),
    (r"head\.weight", "visual.head.proj.weight"),
)
_TEXT: Final[Rules] = (
    (r"embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"final_layer_norm\.(\w+)", r"ln_final.\1"),
    # "#q" names the third of their one matrix that is ours.
    (r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)", r"transformer.resblocks.\1.attn.in_proj_\3#\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)", r"transformer.resblocks.\1.attn.out_proj.\2"),
    (r"encoder\.layers\.(\d+)\.layer_norm(\d)\.(\w+)", r"transformer.resblocks.\1.ln_\2.\3"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.(\w+)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.(\w+)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
    (r"head\.weight", "text_projection"),
)
_CLIP_ONLY: Final = ("backbone.norm_pre.weight", "backbone.head.pos_embed")
_OWN: Final = ("mean", "std")  # our towers' own buffers, which no checkpoint has
_NOT_WEIGHTS: Final = ("logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size", "attn_mask")


def is_image_state(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict holds an image tower in this layout."""
    return any(key.startswith("visual.") for key in state)


def is_text_state(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict holds a CLIP text tower in this layout."""
    return any(key.removeprefix("text.").startswith("transformer.resblocks.") for key in state)


def image_state(state: Mapping[str, Tensor], tower: nn.Module) -> dict[str, Tensor]:
    """The tower's state dict from an OpenAI or open_clip one: ViT, CLIP's ResNet, or a timm model in open_clip.

    Learned positions are resampled to the tower's image size. Raises `UserError` naming what is missing or left over.
    """
    wanted = tower.state_dict()
    rules = _image_rules(wanted, trunk=any(key.startswith("visual.trunk.") for key in state))
    theirs = {key: value for key, value in state.items() if key.startswith("visual.")}
    found = _collect(wanted, rules, theirs)
    return {key: _resampled(value, wanted[key], key) for key, value in found.items()}


def text_state(state: Mapping[str, Tensor], tower: nn.Module) -> dict[str, Tensor]:
    """The tower's state dict from an OpenAI or open_clip one.

    A tower of shorter context takes the first positions, which is exact.
    Raises `UserError` naming what is missing or left over.
    """
    wanted = tower.state_dict()
    prefix = "text." if any(key.startswith("text.") for key in state) else ""
    theirs = {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix) and not key.startswith("visual.") and key.removeprefix(prefix) not in _NOT_WEIGHTS
    }
    found = _collect(wanted, _TEXT, theirs)
    positions = next(key for key in wanted if key.endswith("position_embedding.weight"))
    return found | {positions: found[positions][: len(wanted[positions])]}


def open_clip_state(*, image: nn.Module, text: nn.Module) -> dict[str, Tensor]:
    """Both towers as one state dict in open_clip's layout; the scale is the caller's to add (``logit_scale``).

    An image tower that is not CLIP's own goes where open_clip keeps timm models. Raises `UserError` if a part of a
    tower has no place there.
    """
    own = image.state_dict()
    trunk = not any(key in own for key in _CLIP_ONLY)
    prefix = "text." if trunk else ""
    theirs = _whole_matrices(
        {name: _to_theirs(own[key], name) for key, name in _names(own, _image_rules(own, trunk=trunk))}
    )
    own = text.state_dict()
    words = _whole_matrices({name: _to_theirs(own[key], name) for key, name in _names(own, _TEXT)})
    return theirs | {prefix + name: value for name, value in words.items()}


def _whole_matrices(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the thirds "#q", "#k", "#v" of a matrix."""
    wholes = dict.fromkeys(name.removesuffix("#q") for name in named if not name.endswith(("#k", "#v")))
    return {
        name: named[name] if name in named else torch.cat([named[f"{name}#{third}"] for third in "qkv"])
        for name in wholes
    }


def _image_rules(own: Iterable[str], *, trunk: bool) -> Rules:
    keys = set(own)
    if trunk:
        return _TRUNK
    return _RESNET if "backbone.stem.conv1.conv.weight" in keys else _VIT


def _names(own: Iterable[str], rules: Rules) -> Iterator[tuple[str, str]]:
    """Our name and theirs of each tensor."""
    for key in own:
        if key not in _OWN:
            yield key, _their_name(key, rules)


def _their_name(key: str, rules: Rules) -> str:
    # Some versions of transformers keep the text model one level deeper.
    plain = key.removeprefix("backbone.").removeprefix("text_model.") if rules is _TEXT else key
    for pattern, name in rules:
        if match := re.fullmatch(pattern, plain):
            return match.expand(name)
    raise UserError(
        f"open_clip's layout has no place for {key!r}; it holds CLIP's ViT, ResNet and text tower, and timm models "
        "with a linear head"
    )


def _collect(wanted: Mapping[str, Tensor], rules: Rules, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = dict(_names(wanted, rules))
    used = {name.partition("#")[0] for name in names.values()}
    missing, left = sorted(used - set(theirs)), sorted(set(theirs) - used)
    if missing or left:
        raise UserError(mismatch("the CLIP checkpoint", missing=missing, left=left))
    found = {key: _to_ours(theirs, name, like=wanted[key]) for key, name in names.items()}
    return found | {key: wanted[key] for key in _OWN if key in wanted}


def mismatch(what: str, *, missing: Iterable[str], left: Iterable[str]) -> str:
    """One line about a state dict that does not fit: what it lacks, what it has beyond the tower."""
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for kind, names in (("missing", list(missing)), ("unexpected", list(left)))
        if names
    ]
    fix = "give the tower the model name, head and width that the weights were made with"
    return f"{what} does not fit this tower: {' and '.join(parts)}; {fix}"


def _to_ours(theirs: Mapping[str, Tensor], name: str, *, like: Tensor) -> Tensor:
    whole, _, third = name.partition("#")
    value = theirs[whole]
    if third:
        return value.chunk(3)["qkv".index(third)]
    if name in ("visual.proj", "text_projection"):
        return value.T
    return value[(None,) * (like.ndim - value.ndim)]


def _to_theirs(value: Tensor, name: str) -> Tensor:
    match name:
        case "visual.proj" | "text_projection":
            return value.T.contiguous()
        case "visual.class_embedding":
            return value.flatten()
        case "visual.positional_embedding":
            return value.flatten(0, -2)
        case _:
            return value


def _resampled(value: Tensor, like: Tensor, key: str) -> Tensor:
    if not key.endswith("pos_embed") or value.shape == like.shape:
        return value
    side = round((like.shape[-2] - 1) ** 0.5)
    resized: Tensor = resample_abs_pos_embed(value.view(1, *value.shape[-2:]), [side, side])
    return resized.view(like.shape)
