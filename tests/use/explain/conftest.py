"""Models of every recipe and pictures for the tests of `unicl.use.explain`."""

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from tiny import tiny, write_photos
from unicl.data.sources import load_all
from unicl.data.text import train_tokenizer
from unicl.run import build_model
from unicl.use.explain.area import Area
from unicl.use.explain.fonts import VARIABLE
from unicl.use.explain.run import ClassIndex, Explanation

TEXTS = ["a photo of a balloon.", "a red square on a table", "something green and blue", "一只红苹果"]


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    return load_all(write_photos(tmp_path_factory.mktemp("explained"), each=2))


@pytest.fixture(scope="session")
def made(sources):
    """A model of a recipe with random weights, once."""
    models = {}

    def make(name, *, tower="test_vit"):
        if (name, tower) not in models:
            torch.manual_seed(0)
            recipe = tiny(name, tower=tower)
            tokenizer = None if recipe.text is None else train_tokenizer(TEXTS * 2, vocab_size=400, context=24)
            models[name, tower] = build_model(recipe, sources, tokenizer=tokenizer).eval()
        return models[name, tower]

    return make


@pytest.fixture(scope="session")
def flower():
    return Image.fromarray(load_sample_images().images[1])


@pytest.fixture
def no_font(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def found(flower):
    """An explanation made by hand: three words over a grid of two by three."""
    heat = torch.tensor([[[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[0.2] * 3] * 2])
    index = ClassIndex(
        parts=("<bos>", "a", "red", "apple", "<eos>"),
        best=torch.tensor([[3, 0, 1], [2, 4, 3]]),
        label="red",
        wanted=(2,),
    )
    return Explanation(
        model="filip",
        image="flower.jpg",
        text='a red <apple> & "pear"',
        method="products",
        words=("a", "red", "<apple>"),
        heat=heat,
        whole=heat.amax(0),
        scores=(0.5, 1.0, 0.2),
        score=0.321,
        picture=flower,
        area=Area(left=100.0, top=50.0, right=500.0, bottom=400.0),
        index=index,
        notes=("a note",),
    )
