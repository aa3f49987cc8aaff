"""torchvision's ConvNeXt as timm's: sizes from shapes, rules of names (torchvision, models/convnext.py)."""

import re
from typing import Final

from unicl.towers.image import ImageSettings
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Change, Rule, Rules, Unused
from unicl.towers.weights.swin import imagenet_frame

SIZE: Final = 224
STAGES: Final = 4
CHANNELS: Final = Change(
    lambda value, _like: value[:, 0, 0] if value.ndim == 3 and value.shape[1:] == (1, 1) else value,
    lambda value: value[:, None, None],
)
"""Ours ``(F,)``, theirs ``(F, 1, 1)``."""

_NAMED: Final = (
    ((3, 3, 9, 3), (96, 192, 384, 768), "convnext_tiny"),
    ((3, 3, 27, 3), (96, 192, 384, 768), "convnext_small"),
    ((3, 3, 27, 3), (128, 256, 512, 1024), "convnext_base"),
    ((3, 3, 27, 3), (192, 384, 768, 1536), "convnext_large"),
)


def recognises(found: Checkpoint, *, root: str) -> bool:
    """Whether there are torchvision's blocks with their scales below ``root``."""
    return found.any(rf"{re.escape(root)}features\.[1357]\.\d+\.(layer_scale|block\.\d)")


def settings(found: Checkpoint, *, root: str) -> ImageSettings:
    """timm's ConvNeXt of the sizes that the shapes below ``root`` tell; the ones that have a name get it.

    Raises `UserError` naming what is missing.
    """
    odd = [2 * stage + 1 for stage in range(STAGES)]
    depths = tuple(found.count(rf"{re.escape(root)}features\.{place}\.(\d+)\.") for place in odd)
    dims = tuple(found.shape(f"{root}features.{place}.0.block.0.bias")[0] for place in odd)
    named = next((name for *sizes, name in _NAMED if tuple(sizes) == (depths, dims)), None)
    return ImageSettings(
        name=named or "convnext_tiny",
        size=SIZE,
        options={} if named else {"depths": depths, "dims": dims},
        frame=imagenet_frame(SIZE, interpolation="bilinear"),
        head="none",
    )


def rules(root: str) -> Rules:
    """From our names to those below ``root``."""
    parts = (("conv_dw", 0), ("norm", 2), (r"mlp\.fc1", 3), (r"mlp\.fc2", 5))
    found = [
        Rule(r"image\.backbone\.stem\.([01])\.(\w+)", rf"{root}features.0.\1.\2"),
        Rule(r"image\.backbone\.head\.norm\.(\w+)", rf"{root}classifier.0.\1"),
    ]
    for stage in range(STAGES):
        ours = rf"image\.backbone\.stages\.{stage}"
        block, theirs = rf"{ours}\.blocks\.(\d+)", rf"{root}features.{2 * stage + 1}.\1"
        found += [
            Rule(rf"{ours}\.downsample\.([01])\.(\w+)", rf"{root}features.{2 * stage}.\1.\2"),
            Rule(rf"{block}\.gamma", f"{theirs}.layer_scale", CHANNELS),
            *(Rule(rf"{block}\.{name}\.(\w+)", rf"{theirs}.block.{number}.\2") for name, number in parts),
        ]
    return tuple(found)


def unused(root: str) -> tuple[Unused, ...]:
    """The classifier."""
    return (Unused(rf"{re.escape(root)}classifier\.2\.(weight|bias)", "the classifier of the pretraining"),)
