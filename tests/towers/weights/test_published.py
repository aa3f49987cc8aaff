from pathlib import Path

import pytest
import torch

from unicl.errors import UserError
from unicl.published import model_of
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, TextTower
from unicl.towers.weights.layouts import LAYOUTS
from unicl.towers.weights.names import Rule, Unused
from unicl.towers.weights.published import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, Published, assembled
from unicl.towers.weights.published import wanted as shapes_of

IMAGE = ImageSettings(name="test_vit", size=32)
TEXT = TextSettings(name="clip", layers=1, dim=16, heads=2, context=8)
SIZES = {"vocab_size": 40, "eos_id": 2, "pad_id": 0}
RULES = (Rule(r"image\.(.*)", r"visual.\1"), Rule(r"text\.(.*)", r"words.\1"), Rule("log_scale", "logit_scale"))
SOURCE = "weights.pt"


def described(**fields):
    return Published(
        origin="a test", source=SOURCE, image=IMAGE, text=TEXT, width=16, state={}, notes=("first",), **SIZES, **fields
    )


def theirs():
    """A random model under other names."""
    torch.manual_seed(0)
    image, text = ImageTower(IMAGE, width=16), TextTower(TEXT, width=16, **SIZES)
    visual = {f"visual.{k}": v for k, v in image.state_dict().items() if k not in ("mean", "std")}
    words = {f"words.{k}": v for k, v in text.state_dict().items()}
    return visual | words | {"logit_scale": torch.tensor(2.0)}


def test_names_and_shapes_are_those_of_the_towers_but_for_mean_and_std():
    found = shapes_of(image=IMAGE, text=TEXT, width=16, **SIZES)
    image, text = ImageTower(IMAGE, width=16).state_dict(), TextTower(TEXT, width=16, **SIZES).state_dict()
    whole = {f"image.{k}": v for k, v in image.items() if k not in ("mean", "std")}
    whole |= {f"text.{k}": v for k, v in text.items()} | {"log_scale": torch.zeros(())}
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {k: (v.shape, v.dtype) for k, v in whole.items()}
    assert {value.device.type for value in found.values()} == {"meta"}


@pytest.mark.parametrize(
    ("given", "sides"),
    [
        ({"image": IMAGE, "text": None, "scale": False}, {"image"}),
        ({"image": None, "text": TEXT, "scale": False}, {"text"}),
        ({"image": None, "text": None, "bias": True}, {"log_scale", "bias"}),
    ],
)
def test_only_what_there_is_is_wanted(given, sides):
    assert {name.partition(".")[0] for name in shapes_of(**given, width=16, **SIZES)} == sides


def test_a_model_is_put_together_with_every_tensor_in_its_place():
    model = assembled(theirs(), described(), rules=RULES)
    assert {name.replace("visual.", "image.").replace("words.", "text.") for name in theirs()} == {
        *(name for name in model.state if name != "log_scale"),
        "logit_scale",
    }
    assert torch.equal(model.state["image.head.weight"], theirs()["visual.head.weight"])
    assert model.notes == ("first",)
    assert model.scale == pytest.approx(torch.tensor(2.0).exp().item())
    assert model.bias is None


def test_what_is_left_out_is_told_after_what_was_told_before():
    model = assembled(
        theirs() | {"queue": torch.zeros(3)}, described(), rules=RULES, unused=(Unused("queue", "a memory of MoCo"),)
    )
    assert model.notes == ("first", "left out 1 (queue): a memory of MoCo")


@pytest.mark.parametrize("name", ["visual.head.weight", "words.backbone.final_layer_norm.bias", "logit_scale"])
def test_a_missing_renamed_or_reshaped_entry_is_named_with_the_file(name):
    content = theirs()
    value = content.pop(name)
    for wrong in ({}, {f"{name}s": value}, {name: value[None]}):
        with pytest.raises(UserError, match=SOURCE) as error:
            assembled(content | wrong, described(), rules=RULES)
        assert name in str(error.value)


def test_a_bias_must_be_there_if_it_is_wanted():
    rules = (*RULES, Rule("bias", "logit_bias"))
    with pytest.raises(UserError, match="logit_bias"):
        assembled(theirs(), described(), rules=rules, bias=True)
    model = assembled(theirs() | {"logit_bias": torch.tensor(-10.0)}, described(), rules=rules, bias=True)
    assert model.bias == -10.0


def test_a_single_tower_has_no_scale():
    model = Published(origin="a test", image=IMAGE, text=None, width=16, state={})
    assert (model.scale, model.bias) == (None, None)
    visual = {name: value for name, value in theirs().items() if name.startswith("visual.")}
    assert set(assembled(visual, model, rules=RULES, scale=False).state) == {
        name.replace("visual.", "image.") for name in visual
    }


def test_means_and_deviations_are_those_of_the_field():
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN

    assert (CLIP_MEAN, CLIP_STD) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    assert (IMAGENET_MEAN, IMAGENET_STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert HALF == IMAGENET_INCEPTION_MEAN


def test_a_published_pair_becomes_a_model_with_its_scale_and_pixels():
    from unicl.data.text import train_tokenizer

    tokenizer = train_tokenizer(["a red flower"], vocab_size=300, context=8)
    sizes = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    torch.manual_seed(0)
    towers = {"image": ImageTower(IMAGE, width=16), "text": TextTower(TEXT, width=16, **sizes)}
    state = {f"{side}.{k}": v for side, tower in towers.items() for k, v in tower.state_dict().items()}
    state = {k: v for k, v in state.items() if k not in ("image.mean", "image.std")}
    model = model_of(
        Published(
            origin="a test",
            image=IMAGE,
            text=TEXT,
            width=16,
            state=state | {"log_scale": torch.tensor(3.0)},
            mean=HALF,
            std=HALF,
            tokenizer=tokenizer,
            **sizes,
        )
    )
    assert model.scale("instances") == pytest.approx(torch.tensor(3.0).exp().item(), rel=1e-6)
    assert model.image.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert all(torch.equal(value, state[f"text.{name}"]) for name, value in model.text.state_dict().items())


def test_every_layout_has_what_a_layout_has():
    names = [layout.NAME for layout in LAYOUTS]
    assert len(set(names)) == len(names)
    for layout in LAYOUTS:
        assert callable(layout.recognises)
        assert callable(layout.read)
        assert hasattr(layout, "refusal") == hasattr(layout, "write")


def test_no_layout_recognises_what_it_does_not_know():
    from unicl.towers.weights.checkpoint import Checkpoint

    strange = Checkpoint(place=Path("x.pt"), state={"generator.0.weight": torch.zeros(3, 3)})
    assert [layout.NAME for layout in LAYOUTS if layout.recognises(strange)] == []
