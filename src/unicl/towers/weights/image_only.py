"""An image tower alone: a folder of timm's, or a state dict of a family that its names and shapes give away.

ResNets, Swins and ConvNeXts of torchvision, ResNets, vision transformers and Swins of timm, and what DINO, DINOv2,
MoCo and MAE save. All are read without a head: where they were trained for, nothing of ours is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor
from typing import Any, Final

import torch
from torch import Tensor

from unicl.data.image import Frame, FrameMode
from unicl.errors import UserError
from unicl.towers.heads import Option
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.weights import convnext, resnet, swin, vit
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Rules, Unused
from unicl.towers.weights.published import IMAGENET_MEAN, IMAGENET_STD, Published, assembled

NAME: Final = "image tower alone (timm, torchvision, DINO, MoCo, MAE)"
ROOTS: Final = ("base_encoder.", "encoder_q.", "backbone.", "")
"""Where a tower is kept: MoCo-v3, MoCo, DINO, anywhere else."""

MOCO_WIDTH: Final = 384
MOCO_HEADS: Final = 12
"""MoCo-v3's small transformer has heads of 32 dimensions (moco-v3, vits.py)."""

_REST: Final = re.compile(r"(momentum_encoder|predictor|encoder_k|queue|head|projector|prototypes)\b")
_MODES: Final = (("center", "crop"), ("squash", "squash"), ("border", "pad"))
_GUESSED: Final = "the file does not say how pictures were prepared; they are read as ImageNet's"
_HEADS: Final = "the file does not say how many heads attention has; they are taken to be 64 wide"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    settings: ImageSettings
    rules: Rules
    unused: tuple[Unused, ...]
    state: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def recognises(found: Checkpoint) -> bool:
    """Whether it is timm's folder, or a family is known from the names."""
    return "architecture" in found.config or _root(found) is not None


def read(found: Checkpoint) -> Published:
    """The tower; raises `UserError` naming what does not fit, or saying how to name the model by hand."""
    if "architecture" in found.config:
        return _timm_folder(found)
    root = _root(found)
    if root is None:
        raise UserError(
            f"{found.place}: no image model is known by such names ({', '.join(list(found.state)[:3])}, ...); name it: "
            "--image NAME --image-weights FILE, with a model of timm that has these weights"
        )
    family = _family(found, root)
    model = Published(
        origin="image tower alone",
        source=str(found.place),
        image=family.settings,
        text=None,
        width=feature_width(family.settings),
        state={},
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        notes=(*family.notes, _GUESSED),
    )
    rest = tuple(
        Unused(re.escape(key), "the rest of the pretraining")
        for key in found.state
        if _REST.match(key) and not (root and key.startswith(root))
    )
    return assembled(family.state, model, rules=family.rules, unused=(*family.unused, *rest), scale=False)


def feature_width(settings: ImageSettings) -> int:
    """How many features a tower gives without a head."""
    with torch.device("meta"):
        return ImageTower(replace(settings, head="linear"), width=1).feature_width


def _root(found: Checkpoint) -> str | None:
    """Where the tower of a known family lies; None if there is none."""
    checks = (resnet.recognises, vit.is_timm, vit.is_torchvision, convnext.recognises)
    for root in ROOTS:
        if any(check(found, root=root) for check in checks) or _swin(found, root):
            return root
    return None


def _swin(found: Checkpoint, root: str) -> str | None:
    place = re.escape(root)
    if found.any(rf"{place}layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table"):
        return "microsoft" if found.any(rf"{place}layers\.0\.downsample\.") else "timm"
    if found.any(rf"{place}features\.\d+\.\d+\.attn\.relative_position_bias_table"):
        return "torchvision"
    return None


def _family(found: Checkpoint, root: str) -> _Family:
    if kind := _swin(found, root):
        settings = swin.settings(found, swin.names(kind, root=root), head="none")
        rules = swin.rules(kind, root=root, stages=swin.stages_of(settings))
        return _Family(settings=settings, rules=rules, unused=swin.unused(root), state=found.state)
    if resnet.recognises(found, root=root):
        frame = swin.imagenet_frame(resnet.SIZE, interpolation="bilinear")
        settings = resnet.settings(found, root=root, head="none", frame=frame)
        return _Family(settings=settings, rules=resnet.rules(root), unused=resnet.unused(root), state=found.state)
    if convnext.recognises(found, root=root):
        settings = convnext.settings(found, root=root)
        return _Family(settings=settings, rules=convnext.rules(root), unused=convnext.unused(root), state=found.state)
    return _transformer(found, root)


def _transformer(found: Checkpoint, root: str) -> _Family:
    if vit.is_torchvision(found, root=root):
        return _Family(
            settings=vit.torchvision_settings(found, root=root),
            rules=vit.torchvision_rules(found, root=root),
            unused=vit.torchvision_unused(root),
            state=found.state,
            notes=(_HEADS,),
        )
    width = found.shape(f"{root}patch_embed.proj.weight")[0]
    heads = MOCO_HEADS if root == "base_encoder." and width == MOCO_WIDTH else None
    state, notes = vit.timm_state(found, root=root)
    return _Family(
        settings=vit.timm_settings(found, root=root, heads=heads),
        rules=vit.timm_rules(found, root=root),
        unused=vit.timm_unused(root),
        state=state,
        notes=(*notes, _HEADS) if heads is None else notes,
    )


def _timm_folder(found: Checkpoint) -> Published:
    """A folder in which timm's config.json names the architecture and the preprocessing."""
    config = found.config
    shown: Mapping[str, Any] = config.get("pretrained_cfg") or {}
    size = int((shown.get("input_size") or (3, 224, 224))[-1])
    given: Mapping[str, Any] = config.get("model_args") or {}
    options: dict[str, Option] = {k: tuple(value) if isinstance(value, list) else value for k, value in given.items()}
    settings = ImageSettings(
        name=str(config["architecture"]), size=size, options=options, frame=_frame(shown, size=size), head="none"
    )
    classifiers = shown.get("classifier") or ("head", "fc", "classifier")
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    model = Published(
        origin=f"timm ({settings.name})",
        source=str(found.place),
        image=settings,
        text=None,
        width=feature_width(settings),
        state={},
        mean=_three(shown.get("mean"), otherwise=IMAGENET_MEAN),
        std=_three(shown.get("std"), otherwise=IMAGENET_STD),
    )
    unused = tuple(Unused(rf"{re.escape(name)}\.(weight|bias)", "the classifier of the pretraining") for name in names)
    return assembled(found.state, model, rules=(Rule(r"image\.backbone\.(.+)", r"\1"),), unused=unused, scale=False)


def _frame(shown: Mapping[str, Any], *, size: int) -> Frame:
    modes: dict[str, FrameMode] = dict(_MODES)
    mode = modes.get(str(shown.get("crop_mode") or "center"), "crop")
    scale = floor(size / float(shown.get("crop_pct") or 0.875))
    return Frame(
        mode=mode,
        scale=scale if scale > size else None,
        interpolation="bilinear" if shown.get("interpolation") == "bilinear" else "bicubic",
    )


def _three(values: Any, *, otherwise: tuple[float, float, float]) -> tuple[float, float, float]:
    if not values:
        return otherwise
    first, second, third = (float(value) for value in values)
    return first, second, third
