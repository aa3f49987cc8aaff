"""A tiny real model and real pictures for the tests of `unicl.use`."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from tiny import tiny, write_photos
from unicl.data.text import train_tokenizer
from unicl.model import ModelSettings, TwoTowers, load_model
from unicl.objective.terms import ClassifySettings, ClassName, ContrastSettings
from unicl.run import Job, train
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings

IMAGE = ImageSettings(name="test_vit", size=32)
NESTED = (ContrastSettings(texts="captions"), ContrastSettings(name="classes", texts="classes", dims=8))


def build(seed: int) -> TwoTowers:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["a red flower", "a temple by the water", "红花"], vocab_size=300, context=16)
    settings = ModelSettings(
        image=IMAGE, text=TextSettings(layers=1, dim=32, heads=2), width=16, terms=NESTED, recipe="itl"
    )
    return TwoTowers(settings, tokenizer=tokenizer).eval()


@pytest.fixture(scope="session")
def model() -> TwoTowers:
    return build(0)


@pytest.fixture(scope="session")
def other() -> TwoTowers:
    return build(1)


@pytest.fixture(scope="session")
def parted(tmp_path_factory) -> TwoTowers:
    """A model that compares parts, trained for some steps."""
    folder = tmp_path_factory.mktemp("parted")
    train(Job(recipe=tiny("filip", steps=8), data=write_photos(folder, each=4)), folder / "run")
    return load_model(folder / "run")


@pytest.fixture(scope="session")
def classifier() -> TwoTowers:
    """A model without a text tower, that knows three classes."""
    torch.manual_seed(0)
    settings = ModelSettings(
        image=IMAGE,
        text=None,
        width=16,
        terms=(ClassifySettings(),),
        classes=tuple(ClassName(label=name, key=k + 1) for k, name in enumerate(("flower", "temple", "sky"))),
        recipe="cross_entropy",
    )
    return TwoTowers(settings, tokenizer=None).eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve crops of two photographs in two folders, one picture that is cut off, and a file that is none."""
    folder = tmp_path / "photos"
    for name, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        whole = Image.fromarray(pixels)
        (folder / name).mkdir(parents=True)
        for k in range(6):
            whole.crop((100 * k, 40 * k, 100 * k + 110, 40 * k + 90)).save(folder / name / f"{k}.jpg")
    content = (folder / "temple" / "0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 3])
    (folder / "notes.txt").write_text("not a picture")
    return folder
