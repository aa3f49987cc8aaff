"""Changes of a radiograph: colours say nothing there, so that brightness, place and sharpness vary."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How far a radiograph is changed at random.

    ``turn`` in degrees and ``shift`` as a share of the side, either way; ``zoom`` and ``light`` (brightness, contrast)
    are factors; ``blur`` the standard deviations of a Gaussian in pixels, None being none.
    """

    turn: float
    shift: float
    zoom: tuple[float, float]
    light: tuple[float, float]
    blur: tuple[float, float] | None = None


CONVIRT: Final = Changes(turn=20.0, shift=0.1, zoom=(0.95, 1.05), light=(0.6, 1.4), blur=(0.1, 3.0))
"""ConVIRT, section 4.2."""
CHEST: Final = Changes(turn=10.0, shift=0.0625, zoom=(0.8, 1.1), light=(0.8, 1.2))
"""MedCLIP's (its released training script)."""


def radiograph(image: Tensor, changes: Changes, *, rng: np.random.Generator) -> Tensor:
    """``(3, H, W)`` uint8 to the same: turned, moved, zoomed, lighter or darker, and perhaps blurred.

    What turns out of the picture is black. All is drawn from ``rng``, uniformly.
    """
    from torchvision.transforms.v2 import functional

    height, width = image.shape[1:]
    across, down = (round(float(rng.uniform(-changes.shift, changes.shift)) * side) for side in (width, height))
    image = functional.affine(
        image,
        angle=float(rng.uniform(-changes.turn, changes.turn)),
        translate=[across, down],
        scale=float(rng.uniform(*changes.zoom)),
        shear=[0.0, 0.0],
        interpolation=functional.InterpolationMode.BILINEAR,
    )
    image = functional.adjust_brightness(image, float(rng.uniform(*changes.light)))
    image = functional.adjust_contrast(image, float(rng.uniform(*changes.light)))
    if changes.blur is None:
        return image.to(torch.uint8)
    sigma = float(rng.uniform(*changes.blur))
    # Three deviations to each side hold all but 3 in 1000 of a Gaussian.
    side = 2 * min(int(np.ceil(3 * sigma)), (min(height, width) - 1) // 2) + 1
    blurred: Tensor = functional.gaussian_blur(image, [side, side], [sigma, sigma])
    return blurred.to(torch.uint8)
