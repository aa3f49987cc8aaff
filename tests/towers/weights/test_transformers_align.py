"""transformers' AlignModel: read and written with equal features, by its own code on both sides."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import AlignConfig, AlignModel

from checkpoint_cases import wrong_by_one
from chinese_cases import TEXTS, pictures, save_align
from transformers_cases import largest, loaded, ours, theirs
from unicl.data.image import Frame
from unicl.data.text import load_tokenizer
from unicl.errors import UserError
from unicl.published import model_of, publish
from unicl.towers.image import ImageTower
from unicl.towers.text import TextTower
from unicl.towers.weights import transformers_align as layout
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.published import HALF
from unicl.towers.weights.transformers_files import write_tokenizer

PUBLISHED = {
    "crop_size": {"height": 289, "width": 289},
    "do_center_crop": True,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "EfficientNetImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "include_top": False,
    "processor_class": "AlignProcessor",
    "resample": 2,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "size": {"height": 346, "width": 346},
}
"""align-base's own preprocessor_config.json."""


def with_processor(folder, content=PUBLISHED):
    (folder / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")


def pixels_of(side):
    return torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures(side=side)]).permute(0, 3, 1, 2)


@torch.no_grad()
def both(original, model, side):
    """Image features of both for noise of a side."""
    pixels = pixels_of(side)
    return original.get_image_features(pixel_values=pixels / 127.5 - 1).pooler_output, model.image.features(pixels)


def test_features_are_equal_on_the_way_in_and_out(tmp_path):
    original = save_align(tmp_path / "a")
    with_processor(tmp_path / "a")
    _, processor = loaded(tmp_path / "a")
    found = layout.read(open_checkpoint(tmp_path / "a"))
    assert (found.image.frame, found.image.size) == (Frame(mode="squash", scale=346, interpolation="bilinear"), 289)
    assert (found.mean, found.std) == (HALF, HALF)
    model = model_of(found)
    images = pictures(side=289)
    _, expected = theirs(original, processor, images, TEXTS, padding="max_length")
    assert float((model.embed_text(list(TEXTS)) - expected).abs().max()) < 1e-5
    assert float((expected[0] - expected[1]).abs().max()) > 1e-2
    for side in (64, 289):
        their_features, our_features = both(original, model, side)
        assert float((their_features - our_features).abs().max()) < 1e-5 * float(their_features.abs().max())
        assert float((their_features[0] - their_features[1]).abs().max()) > 1e-3

    (tmp_path / "b").mkdir()
    out = publish(model)
    assert layout.refusal(out) is None
    layout.write(out, tmp_path / "b")
    back, words = loaded(tmp_path / "b")
    assert type(back) is type(original)
    first = theirs(back, words, images, TEXTS, padding="max_length")
    assert max(largest(first, ours(model, images, TEXTS))) < 1e-5
    state = back.state_dict()
    rest = {key: value for key, value in original.state_dict().items() if "pooler" not in key and key != "temperature"}
    assert all(torch.equal(value, state[key]) for key, value in rest.items())
    assert float(back.temperature.detach()) == pytest.approx(1 / 64, rel=1e-6)


@torch.no_grad()
def test_at_289_pixels_padding_as_timm_does_gives_other_features(tmp_path):
    original = save_align(tmp_path)
    found = layout.read(open_checkpoint(tmp_path))
    model = model_of(found)
    other = timm.create_model(found.image.name, num_classes=0).eval()
    own = {
        key.removeprefix("image.backbone."): value for key, value in found.state.items() if key.startswith("image.b")
    }
    other.load_state_dict({**other.state_dict(), **own})
    for side, differs in ((64, False), (289, True)):
        their_features, our_features = both(original, model, side)
        states = other.blocks(other.bn1(other.conv_stem(pixels_of(side) / 127.5 - 1)))
        gap = float((states.mean((2, 3)) - their_features).abs().max() / their_features.abs().max())
        assert (gap > 1e-3) is differs, gap
        assert float((our_features - their_features).abs().max()) < 1e-5 * float(their_features.abs().max())


def test_the_temperature_divides(tmp_path):
    original = save_align(tmp_path, temperature=0.25)
    found = layout.read(open_checkpoint(tmp_path))
    assert found.scale == pytest.approx(4)
    assert float(found.state["log_scale"]) == pytest.approx(-float(original.temperature.detach().log()))
    state = open_checkpoint(tmp_path)
    with pytest.raises(UserError, match="temperature"):
        layout.read(replace(state, state={**state.state, "temperature": torch.tensor(-1.0)}))


@pytest.mark.slow
def test_the_published_size_has_its_exact_count(tmp_path):
    write_tokenizer(tmp_path, tokenizer=load_tokenizer("chinese", context=64), kind="bert")
    config = AlignConfig(vision_config={"hidden_dim": 640})
    with torch.device("meta"):
        original = AlignModel(config)
    state = {**original.state_dict(), "temperature": torch.tensor(1.0)}
    found = layout.read(Checkpoint(place=tmp_path, state=state, config=config.to_dict(), folder=tmp_path))
    with torch.device("meta"):
        image = ImageTower(found.image, width=found.width)
        text = TextTower(found.text, width=found.width, vocab_size=found.vocab_size, eos_id=found.eos_id, pad_id=0)
    counts = [sum(value.numel() for value in part.parameters()) for part in (image, text)]
    pooler = 768 * 768 + 768
    assert sum(value.numel() for value in original.parameters()) == 172_117_841
    assert counts == [62_143_440, 109_482_240 - pooler + 492_160]
    assert sum(counts) + pooler + 1 == 172_117_841
    assert [note for note in found.notes if "pooler" in note]
    assert (found.width, found.image.name) == (640, "tf_efficientnet_b7")


@pytest.mark.slow
def test_one_wrong_entry_is_an_error_that_names_it(tmp_path):
    save_align(tmp_path)
    rest = r"text_model\.(?!embeddings\.word).*|vision_model\.encoder\.blocks\.([2-9]|1\d).*"
    found = replace(open_checkpoint(tmp_path), folder=None)
    tried, wrong = wrong_by_one(found, layout.read, spared=rf"{rest}|vision_model.*(bias|norm|bn).*")
    assert tried > 4
    assert wrong == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("width_coefficient", 1.05), ("depthwise_padding", [1]), ("hidden_act", "gelu"), ("pooling_type", "max")],
)
def test_a_network_that_is_no_published_efficientnet_is_refused_by_its_field(tmp_path, field, value):
    save_align(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["vision_config"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=field):
        layout.read(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: replace(model, image=replace(model.image, pool="avg")), "pool 'avg'"),
        (lambda model: replace(model, image=replace(model.image, head="linear")), "head 'linear'"),
        (lambda model: replace(model, image=replace(model.image, name="resnet18")), "resnet18"),
        (lambda model: replace(model, text=replace(model.text, head="linear")), "affine head"),
        (lambda model: replace(model, state=model.state | {"bias": torch.zeros(())}), "bias"),
        (lambda model: replace(model, text=None), "text tower"),
    ],
)
def test_what_it_cannot_hold_is_said_before_anything_is_written(tmp_path, change, said):
    save_align(tmp_path)
    model = layout.read(open_checkpoint(tmp_path))
    assert layout.refusal(model) is None
    assert said in layout.refusal(change(model))


def test_the_written_pooler_is_empty_and_no_entry_is_missing(tmp_path):
    original = save_align(tmp_path / "a")
    (tmp_path / "b").mkdir()
    layout.write(layout.read(open_checkpoint(tmp_path / "a")), tmp_path / "b")
    written = load_file(tmp_path / "b" / "model.safetensors")
    assert written.keys() == original.state_dict().keys()
    assert float(written["text_model.pooler.dense.weight"].abs().max()) == 0
