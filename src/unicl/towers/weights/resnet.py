"""ResNets of torchvision and timm, which share their names: sizes from shapes, rules of names."""

import re
from typing import Final

from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.towers.heads import HeadKind, Option
from unicl.towers.image import ImageSettings
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Rules, Unused

SIZE: Final = 224
STAGES: Final = 4
_STEM: Final = 64
_NAMED: Final = (
    ((2, 2, 2, 2), False, 1, 64, "resnet18"),
    ((3, 4, 6, 3), False, 1, 64, "resnet34"),
    ((3, 4, 6, 3), True, 1, 64, "resnet50"),
    ((3, 4, 23, 3), True, 1, 64, "resnet101"),
    ((3, 8, 36, 3), True, 1, 64, "resnet152"),
    ((3, 4, 6, 3), True, 1, 128, "wide_resnet50_2"),
    ((3, 4, 23, 3), True, 1, 128, "wide_resnet101_2"),
    ((3, 4, 6, 3), True, 32, 4, "resnext50_32x4d"),
    ((3, 4, 23, 3), True, 32, 8, "resnext101_32x8d"),
    ((3, 4, 23, 3), True, 64, 4, "resnext101_64x4d"),
)


def recognises(found: Checkpoint, *, root: str) -> bool:
    """Whether there are the stages of a ResNet below ``root``."""
    return found.any(rf"{re.escape(root)}layer[1-4]\.\d+\.(conv|bn)\d\.")


def settings(found: Checkpoint, *, root: str, head: HeadKind, frame: Frame, size: int = SIZE) -> ImageSettings:
    """timm's ResNet of the sizes that the shapes below ``root`` tell; the ones that have a name get it.

    Raises `UserError` naming what is missing, or what no ResNet of these families has.
    """
    depths = tuple(found.count(rf"{re.escape(root)}layer{stage}\.(\d+)\.") for stage in range(1, STAGES + 1))
    first = f"{root}layer1.0"
    deep = found.any(rf"{re.escape(root)}layer\d\.\d+\.conv3\.")
    stem = found.shape(f"{root}conv1.weight")
    if stem != (_STEM, 3, 7, 7):
        raise UserError(f"{found.place}: {root}conv1.weight is {stem}, but the stem of a plain ResNet is (64, 3, 7, 7)")
    inner, part = found.shape(f"{first}.conv2.weight")[:2]
    groups = inner // part if part and not inner % part else 1
    base = part if groups > 1 else inner
    named = next((name for *sizes, name in _NAMED if tuple(sizes) == (depths, deep, groups, base)), None)
    options: dict[str, Option] = {}
    if named is None:
        # The block itself is no value that settings can hold, so the nearest model that has it lends it.
        named = "resnet50" if deep else "resnet18"
        options = {"layers": depths, "cardinality": groups, "base_width": base}
    return ImageSettings(name=named, size=size, frame=frame, head=head, options=options)


def rules(root: str) -> Rules:
    """From our names of a ResNet backbone to those below ``root``."""
    return (Rule(r"image\.backbone\.(.+)", rf"{root}\1"),)


def unused(root: str) -> tuple[Unused, ...]:
    """The classifier."""
    return (Unused(rf"{re.escape(root)}fc\.(weight|bias)", "the classifier of the pretraining"),)
