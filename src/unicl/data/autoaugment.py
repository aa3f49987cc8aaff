"""AutoAugment: pairs of changes of a picture that were searched for on ImageNet (Cubuk et al. 2019)."""

import math
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LEVELS: Final = 9
"""A change has the strengths 0 to 9 (table 6)."""


def autoaugment(image: Tensor, *, rng: np.random.Generator) -> Tensor:
    """``(3, H, W)`` uint8 to the same, with one of the 25 pairs of changes, each by its chance and sign.

    Pairs and changes are torchvision's on Pillow images (ten times as fast as on tensors), what turns out of the
    picture is black. All is drawn from ``rng``, so that threads and processes give the same pixels.
    """
    pairs = _pairs()
    changes = [(change, rng.random(), rng.random() < 0.5) for change in pairs[rng.integers(len(pairs))]]
    # A view whose colours lie side by side costs no copy here.
    changed = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    for (name, chance, level), drawn, mirrored in changes:
        if drawn < chance:
            changed = _changed(changed, name, level=level or 0, sign=-1 if mirrored else 1)
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


@cache
def _pairs() -> tuple[tuple[tuple[str, float, int | None], ...], ...]:
    from torchvision.transforms import AutoAugment

    return tuple(AutoAugment().policies)


def _changed(image: Image.Image, name: str, *, level: int, sign: int) -> Image.Image:
    from torchvision.transforms import functional

    share = level / LEVELS
    factor = 1 + sign * 0.9 * share
    match name:
        case "Rotate":
            changed: Any = functional.rotate(image, sign * 30 * share)
        case "ShearX":
            slant = [math.degrees(math.atan(sign * 0.3 * share)), 0.0]
            changed = functional.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=slant, center=[0, 0])
        case "Color":
            changed = functional.adjust_saturation(image, factor)
        case "Contrast":
            changed = functional.adjust_contrast(image, factor)
        case "Sharpness":
            changed = functional.adjust_sharpness(image, factor)
        case "Posterize":
            changed = functional.posterize(image, 8 - round(4 * share))
        case "Solarize":
            changed = functional.solarize(image, 255 * (LEVELS - level) / LEVELS)
        case "AutoContrast":
            changed = functional.autocontrast(image)
        case "Equalize":
            changed = functional.equalize(image)
        case "Invert":
            changed = functional.invert(image)
        case _:
            raise ValueError(f"torchvision's policy has the change {name!r}, which is not known here")
    result: Image.Image = changed
    return result
