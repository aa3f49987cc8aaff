import io
import json
from dataclasses import asdict, replace

import pytest
import torch
from rich.console import Console

from unicl.data.image import Frame
from unicl.data.text import load_tokenizer
from unicl.model import ModelSettings, TwoTowers
from unicl.objective.terms import ContrastSettings
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.use.inspect import count, inspect, show

CLIP = TextSettings(tokenizer="clip", layers=12, dim=512, heads=8)
PUBLISHED = {
    # Parameters of OpenAI's checkpoints, its scale included.
    "vit_base_patch32_clip_quickgelu_224": (512, 224, CLIP, 151_277_313),
    "vit_base_patch16_clip_quickgelu_224": (512, 224, CLIP, 149_620_737),
    "vit_large_patch14_clip_quickgelu_224": (768, 224, replace(CLIP, dim=768, heads=12), 427_616_513),
    "resnet50_clip": (1024, 224, CLIP, 102_007_137),
}


def printed(inspection):
    console = Console(file=io.StringIO(), width=120)
    show(inspection, console)
    return console.file.getvalue()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    width, size, text, number = PUBLISHED[name]
    head = "none" if "resnet" in name else "linear"
    settings = ModelSettings(image=ImageSettings(name=name, size=size, head=head), text=text, width=width)
    tokenizer = load_tokenizer("clip", context=77)
    with torch.device("meta"):
        model = TwoTowers(settings, tokenizer=tokenizer)
    assert count(model) == number
    assert count(model) == count(model.image) + count(model.text) + 1


def test_an_inspection_says_what_the_model_is(model):
    found = inspect(model, origin="a test", notes=["left out 3 (a, b, c): no tower holds them"])
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.parameters == found.learned == found.image.parameters + found.text.parameters + 2
    assert found.views == {"instances": 16, "classes": 8}
    assert set(found.scales) == {"instances", "classes"}
    assert found.scales["instances"] == pytest.approx(1 / 0.07)
    assert (found.image.name, found.image.size, found.image.scaled, found.image.features) == ("test_vit", 32, 32, 64)
    assert found.image.mean == tuple(model.image.mean.flatten().tolist())
    assert (found.text.pool, found.text.context, found.text.tokenizer) == ("eos", 16, "train")
    assert (found.text.entries, found.text.end) == (model.tokenizer.vocab_size, 2)
    assert (found.origin, found.recipe, found.width) == ("a test", "itl", 16)


def test_json_holds_all_of_it(model):
    found = inspect(model, origin="a test", notes=["one", "two"])
    content = json.loads(found.to_json())
    assert content == json.loads(json.dumps(asdict(found)))
    assert content["image"]["parameters"] == found.image.parameters
    assert content["notes"] == ["one", "two"]


def test_a_terminal_shows_what_a_reader_needs(model):
    text = printed(inspect(model, origin="runs/[a]", notes=["left out [b]: no use"]))
    for wanted in (
        "runs/[a]",
        "left out [b]: no use",
        "16 dimensions (16 for instances, 8 for classes)",
        f"{sum(p.numel() for p in model.parameters()):,}",
        "14.29 for instances",
        "test_vit",
        "32 x 32 pixels (crop, bicubic)",
        "at most 16 tokens",
        "end mark 2, padding 0",
    ):
        assert wanted in text
    assert "learn" not in text


def test_a_classifier_has_no_texts_and_says_its_classes(classifier):
    found = inspect(classifier)
    assert found.text is None
    assert (found.classes, dict(found.views), dict(found.scales)) == (3, {}, {})
    text = printed(found)
    assert "Text tower" not in text
    assert "cross_entropy" in text


def test_what_does_not_learn_is_told_apart(model):
    image = ImageSettings(
        name="test_vit", size=32, locked=True, frame=Frame(mode="squash", scale=40), options={"class_token": True}
    )
    text = TextSettings(layers=1, dim=32, heads=2, context=16, lora=2)
    terms = (ContrastSettings(loss="sigmoid", scale=ScaleSettings(init=10.0, bias=-10.0)),)
    settings = ModelSettings(image=image, text=text, width=16, terms=terms)
    made = TwoTowers(settings, tokenizer=model.tokenizer)
    found = inspect(made)
    head = 64 * 16
    assert (found.image.learned, found.image.locked) == (head, True)
    assert found.text.learned == 32 * 16 + sum(v.numel() for n, v in made.state_dict().items() if "lora" in n)
    assert found.learned == found.image.learned + found.text.learned + 2
    assert found.biases == {"instances": -10.0}
    shown = printed(found)
    for wanted in ("of which 1,024 learn", "adapters of rank 2", "locked", "10.00 and a bias of -10.00", "out of 40"):
        assert wanted in shown
    assert "test_vit (class_token True)" in shown


def test_parts_and_what_compares_them_are_shown_only_where_they_are(parted, model):
    found = inspect(parted)
    assert found.similarities == {"instances": "tokenwise"}
    assert found.image.parts["first"] is False
    assert found.text.parts["marks"] == "both"
    page = printed(found)
    assert "tokenwise" in page
    assert "marks both" in page
    assert json.loads(found.to_json())["image"]["parts"] == dict(found.image.parts)
    plain = inspect(model)
    assert (plain.image.parts, plain.text.parts) == (None, None)
    assert "compares" not in printed(plain)
