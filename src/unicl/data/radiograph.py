"""ConVIRT's changes of a radiograph: colours say nothing there, so that brightness, place and sharpness vary."""

from typing import Final

import numpy as np
import torch
from torch import Tensor

TURN: Final = 20.0
"""Degrees, either way."""

SHIFT: Final = 0.1
"""Share of the side, either way."""

ZOOM: Final = (0.95, 1.05)
LIGHT: Final = (0.6, 1.4)
"""Factors of brightness and of contrast."""

BLUR: Final = (0.1, 3.0)
"""Standard deviations of a Gaussian, in pixels."""


def radiograph(image: Tensor, *, rng: np.random.Generator) -> Tensor:
    """``(3, H, W)`` uint8 to the same: turned, moved, zoomed, lighter or darker, and blurred (ConVIRT, section 4.2).

    What turns out of the picture is black. All is drawn from ``rng``, uniformly.
    """
    from torchvision.transforms.v2 import functional

    height, width = image.shape[1:]
    across, down = (round(float(rng.uniform(-SHIFT, SHIFT)) * side) for side in (width, height))
    image = functional.affine(
        image,
        angle=float(rng.uniform(-TURN, TURN)),
        translate=[across, down],
        scale=float(rng.uniform(*ZOOM)),
        shear=[0.0, 0.0],
        interpolation=functional.InterpolationMode.BILINEAR,
    )
    image = functional.adjust_brightness(image, float(rng.uniform(*LIGHT)))
    image = functional.adjust_contrast(image, float(rng.uniform(*LIGHT)))
    sigma = float(rng.uniform(*BLUR))
    # Three deviations to each side hold all but 3 in 1000 of a Gaussian.
    side = 2 * min(int(np.ceil(3 * sigma)), (min(height, width) - 1) // 2) + 1
    blurred: Tensor = functional.gaussian_blur(image, [side, side], [sigma, sigma])
    return blurred.to(torch.uint8)
