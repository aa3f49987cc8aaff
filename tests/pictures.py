"""Small real pictures as the bytes of files."""

from io import BytesIO

import numpy as np
from PIL import Image


def noise(height=20, width=24, *, channels=3, seed=0):
    """Smooth random pixels, (H, W, C) uint8: pictures, unlike white noise, survive compression."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(1, height // 4), max(1, width // 4), channels), dtype=np.uint8)
    layers = [
        Image.fromarray(small[:, :, c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)
    ]
    return np.stack([np.array(layer) for layer in layers], axis=2)


def encoded(pixels, format="PNG", **options):
    """The file of an array or of a Pillow image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def picture(seed=0):
    """A PNG of 24 x 20 pixels."""
    return encoded(noise(seed=seed))
