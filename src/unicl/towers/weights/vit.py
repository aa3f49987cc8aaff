"""Vision transformers of timm, DINO, DINOv2, MoCo-v3, MAE and torchvision as timm's: sizes from shapes, rules of names.

All but torchvision's have timm's names. Sources: facebookresearch/dino, dinov2, moco-v3 and mae; torchvision,
models/vision_transformer.py.
"""

import math
import re
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from unicl.errors import UserError
from unicl.towers.heads import Option
from unicl.towers.image import ImageSettings
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Rules, Unused
from unicl.towers.weights.swin import imagenet_frame

NAME: Final = "vit_base_patch16_224"
"""timm's; every size of it is overridden."""

HEAD_WIDTH: Final = 64
_REGISTERS: Final = ("register_tokens", "reg_token")


def is_timm(found: Checkpoint, *, root: str) -> bool:
    """Whether there are timm's blocks and positions below ``root``."""
    place = re.escape(root)
    return found.any(rf"{place}blocks\.\d+\.attn\.") and found.any(rf"{place}(pos_embed|cls_token|patch_embed\.proj)")


def is_torchvision(found: Checkpoint, *, root: str) -> bool:
    """Whether there are torchvision's blocks below ``root``."""
    return found.any(rf"{re.escape(root)}encoder\.layers\.encoder_layer_\d+\.")


def timm_settings(found: Checkpoint, *, root: str, heads: int | None = None) -> ImageSettings:
    """The tower that the shapes below ``root`` tell, without a head.

    The matrices do not tell the number of ``heads``; None means 64 dimensions each. Raises `UserError` naming what is
    missing or does not fit.
    """
    place, block = re.escape(root), f"{root}blocks.0"
    width, _, patch, _ = _patches(found, f"{root}patch_embed.proj.weight")
    token, registers = f"{root}cls_token" in found.state, _registers(found, root)
    plain = not found.any(rf"{place}norm\.") and found.any(rf"{place}fc_norm\.")
    options = _sizes(found, width=width, patch=patch, inner=f"{block}.mlp.fc1.weight", heads=heads) | {
        "depth": found.count(rf"{place}blocks\.(\d+)\."),
        "class_token": token,
        "reg_tokens": registers,
        "no_embed_class": _bare(found, root),
        "global_pool": "avg" if plain or not token else "token",
        "fc_norm": plain,
    }
    if f"{block}.ls1.gamma" in found.state:
        options["init_values"] = 1e-5
    extra = int(_takes_in(found, root)) if options["no_embed_class"] else int(token) + registers
    places = _table(found, f"{root}pos_embed") - extra
    if not _square(places):
        known = f"with {root}cls_token" if token else f"and {root}cls_token is missing"
        raise UserError(f"{found.place} does not fit: {root}pos_embed has {places + extra} places, {known}: no square")
    size = math.isqrt(max(places, 0)) * patch
    return ImageSettings(name=NAME, size=size, options=options, frame=imagenet_frame(size), head="none")


def timm_state(found: Checkpoint, *, root: str) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """The tensors, ready for `timm_rules`, and notes.

    DINOv2 gives its class token a position and its registers none; timm gives both none, so the token takes it in.
    """
    place, token = f"{root}pos_embed", f"{root}cls_token"
    if not _takes_in(found, root):
        return found.state, ()
    table, first = found.state[place], found.state[token]
    note = f"the position of the class token ({place}) is added to {token}, as timm keeps it"
    return {**found.state, place: table[:, 1:], token: first + table[:, :1]}, (note,)


def timm_rules(found: Checkpoint, *, root: str) -> Rules:
    """From our names to those below ``root``."""
    registers = next((name for name in _REGISTERS if root + name in found.state), _REGISTERS[-1])
    return (
        Rule(r"image\.backbone\.reg_token", f"{root}{registers}"),
        Rule(r"image\.backbone\.(.+)", rf"{root}\1"),
    )


def timm_unused(root: str) -> tuple[Unused, ...]:
    """What the pretraining needed beside the tower: masks (DINOv2, MAE), a decoder (MAE), heads."""
    place = re.escape(root)
    return (
        Unused(rf"{place}mask_token", "stands for hidden patches in pretraining"),
        Unused(rf"{place}decoder_(embed|pos_embed|blocks|norm|pred)\b.*", "the decoder of the pretraining"),
        Unused(rf"{place}head\..+", "the head of the pretraining"),
    )


def torchvision_settings(found: Checkpoint, *, root: str) -> ImageSettings:
    """As `timm_settings`, from torchvision's names."""
    width, _, patch, _ = _patches(found, f"{root}conv_proj.weight")
    inner = f"{root}encoder.layers.encoder_layer_0.{_inner(found, root)[0]}.weight"
    options = _sizes(found, width=width, patch=patch, inner=inner, heads=None)
    options["depth"] = found.count(rf"{re.escape(root)}encoder\.layers\.encoder_layer_(\d+)\.")
    size = math.isqrt(max(_table(found, f"{root}encoder.pos_embedding") - 1, 0)) * patch
    frame = imagenet_frame(size, interpolation="bilinear")
    return ImageSettings(name=NAME, size=size, options=options, frame=frame, head="none")


def torchvision_rules(found: Checkpoint, *, root: str) -> Rules:
    """From our names to torchvision's below ``root``."""
    first, second = _inner(found, root)
    ours, theirs = r"image\.backbone\.blocks\.(\d+)", rf"{root}encoder.layers.encoder_layer_\1"
    return (
        Rule(r"image\.backbone\.patch_embed\.proj\.(\w+)", rf"{root}conv_proj.\1"),
        Rule(r"image\.backbone\.cls_token", f"{root}class_token"),
        Rule(r"image\.backbone\.pos_embed", f"{root}encoder.pos_embedding"),
        Rule(r"image\.backbone\.norm\.(\w+)", rf"{root}encoder.ln.\1"),
        Rule(rf"{ours}\.norm([12])\.(\w+)", rf"{theirs}.ln_\2.\3"),
        Rule(rf"{ours}\.attn\.qkv\.(\w+)", rf"{theirs}.self_attention.in_proj_\2"),
        Rule(rf"{ours}\.attn\.proj\.(\w+)", rf"{theirs}.self_attention.out_proj.\2"),
        Rule(rf"{ours}\.mlp\.fc1\.(\w+)", rf"{theirs}.{first}.\2"),
        Rule(rf"{ours}\.mlp\.fc2\.(\w+)", rf"{theirs}.{second}.\2"),
    )


def torchvision_unused(root: str) -> tuple[Unused, ...]:
    """The classifier."""
    return (Unused(rf"{re.escape(root)}heads\..+", "the classifier of the pretraining"),)


def _patches(found: Checkpoint, name: str) -> tuple[int, ...]:
    shape = found.shape(name)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise UserError(f"{found.place} does not fit: {name} is {shape}, not (F, 3, P, P)")
    return shape


def _table(found: Checkpoint, name: str) -> int:
    """How many positions there are."""
    shape = found.shape(name)
    if len(shape) != 3 or shape[0] != 1:
        raise UserError(f"{found.place} does not fit: {name} is {shape}, not (1, P, F)")
    return shape[1]


def _sizes(found: Checkpoint, *, width: int, patch: int, inner: str, heads: int | None) -> dict[str, Option]:
    heads = heads or max(width // HEAD_WIDTH, 1)
    if width % heads:
        raise UserError(f"{found.place} does not fit: its {width} dimensions ({inner}) make no {heads} heads")
    rows = found.shape(inner)[0]
    return {"patch_size": patch, "embed_dim": width, "num_heads": heads, "mlp_ratio": rows / width}


def _registers(found: Checkpoint, root: str) -> int:
    name = next((root + name for name in _REGISTERS if root + name in found.state), None)
    return 0 if name is None else found.shape(name)[-2]


def _takes_in(found: Checkpoint, root: str) -> bool:
    """Whether the class token has a position and the registers have none."""
    places, width = _table(found, f"{root}pos_embed"), found.shape(f"{root}pos_embed")[-1]
    if not found.has(f"{root}register_tokens", f"{root}cls_token"):
        return False
    return found.shape(f"{root}cls_token") == (1, 1, width) and _square(places - 1) and not _square(places)


def _bare(found: Checkpoint, root: str) -> bool:
    """Whether the tokens before the patches have no positions."""
    return _takes_in(found, root) or _square(_table(found, f"{root}pos_embed"))


def _square(number: int) -> bool:
    return math.isqrt(max(number, 0)) ** 2 == number


def _inner(found: Checkpoint, root: str) -> tuple[str, str]:
    """The two matrices of the MLP: a sequence's, or by name in files from before 2022."""
    old = found.any(rf"{re.escape(root)}encoder\.layers\.encoder_layer_\d+\.mlp\.linear_")
    return ("mlp.linear_1", "mlp.linear_2") if old else ("mlp.0", "mlp.3")
