"""transformers' ChineseCLIPModel: read and written with equal features, by its own code on both sides."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ChineseCLIPConfig, ChineseCLIPModel

from checkpoint_cases import wrong_by_one
from chinese_cases import RESNET, TEXTS, official, official_features, official_file, pictures
from original_towers import shake
from transformers_cases import largest, loaded, ours, theirs
from unicl.data.image import Frame
from unicl.data.text import load_tokenizer
from unicl.errors import UserError
from unicl.published import load, model_of, publish
from unicl.towers.weights import cn_clip
from unicl.towers.weights import transformers_chinese_clip as layout
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.transformers_files import write_tokenizer

VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}
WORDS = {
    "vocab_size": 21_128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 60,
}
SQUARE = {
    "image_processor_type": "ChineseCLIPImageProcessor",
    "size": {"height": 64, "width": 64},
    "do_center_crop": False,
    "do_resize": True,
}


def saved(folder, *, vision=None, processor=SQUARE):
    config = ChineseCLIPConfig(vision_config=VISION | (vision or {}), text_config=WORDS, projection_dim=24)
    model = shake(ChineseCLIPModel(config))
    model.save_pretrained(folder)
    write_tokenizer(folder, tokenizer=load_tokenizer("chinese", context=52), kind="bert")
    if processor is not None:
        content = processor | {"processor_class": "ChineseCLIPProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    return model


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_features_are_equal_on_the_way_in_and_out(tmp_path, act):
    original = saved(tmp_path / "a", vision={"hidden_act": act, "layer_norm_eps": 1e-4})
    _, processor = loaded(tmp_path / "a")
    expected = theirs(original, processor, pictures(), TEXTS)
    found = layout.read(open_checkpoint(tmp_path / "a"))
    model = model_of(found)
    assert max(largest(ours(model, pictures(), TEXTS), expected)) < 1e-5
    assert found.scale == pytest.approx(float(original.logit_scale.detach().exp()))
    assert min(float((side[0] - side[1]).abs().max()) for side in expected) > 1e-2

    (tmp_path / "b").mkdir()
    out = publish(model)
    assert layout.refusal(out) is None
    layout.write(out, tmp_path / "b")
    back, words = loaded(tmp_path / "b")
    assert type(back) is type(original)
    assert max(largest(theirs(back, words, pictures(), TEXTS), expected)) < 1e-5
    # transformers itself empties the entry of the padding when it loads, so the file is compared.
    written = open_checkpoint(tmp_path / "b").state
    assert all(torch.equal(value, written[key]) for key, value in original.state_dict().items())


@pytest.mark.parametrize(
    ("processor", "frame"),
    [
        (SQUARE, Frame(mode="squash")),
        (None, Frame(mode="squash")),
        (SQUARE | {"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": 64}, Frame(mode="crop")),
    ],
    ids=["square", "without a file", "crop"],
)
def test_the_preprocessing_of_the_folder_is_kept_and_written(tmp_path, processor, frame):
    saved(tmp_path / "a", processor=processor)
    found = layout.read(open_checkpoint(tmp_path / "a"))
    assert found.image.frame == frame
    (tmp_path / "b").mkdir()
    layout.write(found, tmp_path / "b")
    back, words = loaded(tmp_path / "b")
    wide = [picture.resize((150, 90)) for picture in pictures()]
    images, _ = theirs(back, words, wide, TEXTS[:3])
    assert float((model_of(found).embed_image(wide) - images).abs().max()) < 5e-3


def test_without_an_attention_mask_transformers_reads_padding_and_a_note_says_so(tmp_path):
    original = saved(tmp_path / "a")
    found = layout.read(open_checkpoint(tmp_path / "a"))
    model = model_of(found)
    ids, mask = model.tokenizer(list(TEXTS))
    with torch.no_grad():
        masked = original.get_text_features(input_ids=ids, attention_mask=mask.long()).pooler_output
        plain = original.get_text_features(input_ids=ids).pooler_output
    assert float((masked - plain)[0].abs().max()) > 1e-3
    unit = torch.nn.functional.normalize(masked, dim=-1)
    assert torch.allclose(model.text(ids, mask).whole, unit, atol=1e-5)
    assert layout.MASKED in found.notes


def test_from_cn_clip_to_transformers_and_back_no_bit_changes(tmp_path):
    original = official()
    first = publish(load(official_file(original, tmp_path / "any.pt")))
    (tmp_path / "hf").mkdir()
    layout.write(first, tmp_path / "hf")
    second = publish(load(tmp_path / "hf"))
    assert cn_clip.refusal(second) is None
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(value, second.state[key]) for key, value in first.state.items())
    assert (first.mean, first.std, first.image.frame) == (second.mean, second.std, second.image.frame)
    (tmp_path / "pt").mkdir()
    (file,) = cn_clip.write(second, tmp_path / "pt")
    state = torch.load(file, weights_only=True)["state_dict"]
    assert all(torch.equal(state[f"module.{key}"], value) for key, value in original.state_dict().items())
    expected = official_features(original, pictures())
    back, words = loaded(tmp_path / "hf")
    assert max(largest(theirs(back, words, pictures(), TEXTS), expected)) < 1e-5


def test_names_of_older_files_are_left_out_with_a_note(tmp_path):
    saved(tmp_path / "a")
    state = load_file(tmp_path / "a" / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(60)[None]
    state["text_model.pooler.dense.bias"] = torch.zeros(48)
    save_file(state, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    notes = layout.read(open_checkpoint(tmp_path / "a")).notes
    assert [note for note in notes if "position_ids" in note]
    assert [note for note in notes if "pooler" in note]


@pytest.mark.slow
def test_one_wrong_entry_is_an_error_that_names_it(tmp_path):
    saved(tmp_path)
    # Without the folder, the tokenizer is found by its size, and need not be read each time.
    found = replace(open_checkpoint(tmp_path), folder=None)
    tried, wrong = wrong_by_one(found, layout.read, spared=r".*bias")
    assert tried > 11
    assert wrong == []


def test_weights_without_their_configuration_are_refused(tmp_path):
    saved(tmp_path)
    found = open_checkpoint(tmp_path / "model.safetensors")
    assert layout.recognises(found)
    with pytest.raises(UserError, match=r"config\.json"):
        layout.read(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: replace(model, image=replace(model.image, pool="avg")), "vision transformer"),
        (lambda model: replace(model, image=replace(model.image, head="affine")), "vision transformer"),
        (lambda model: replace(model, text=replace(model.text, pool="mean")), "BERT"),
        (lambda model: replace(model, text=replace(model.text, name="clip", options={}, pool="eos")), "BERT"),
        (lambda model: replace(model, state=model.state | {"bias": torch.zeros(())}), "bias"),
        (lambda model: replace(model, image=replace(model.image, frame=Frame(mode="pad"))), "padded"),
        (lambda model: replace(model, image=None), "needs an image"),
    ],
)
def test_what_it_cannot_hold_is_said_before_anything_is_written(tmp_path, change, said):
    saved(tmp_path)
    model = layout.read(open_checkpoint(tmp_path))
    assert layout.refusal(model) is None
    assert said in layout.refusal(change(model))


def test_a_resnet_is_refused():
    model = cn_clip.read(Checkpoint(place="file.pt", state=official(RESNET).state_dict()))
    assert "no ResNet" in layout.refusal(model)
