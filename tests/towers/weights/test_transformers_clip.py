"""transformers' CLIPModel: read and written with equal features, by its own code on both sides."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_cases import wrong_by_one
from transformers_cases import SIDE, TEXTS, largest, loaded, ours, pictures, save_clip, theirs
from unicl.errors import UserError
from unicl.published import model_of, publish
from unicl.towers.weights import transformers_clip as layout
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.published import wanted


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_features_are_equal_on_the_way_in_and_out(tmp_path, act):
    original = save_clip(tmp_path / "a", vision={"hidden_act": act}, text={"hidden_act": act})
    _, processor = loaded(tmp_path / "a")
    found = layout.read(open_checkpoint(tmp_path / "a"))
    model = model_of(found)
    expected = theirs(original, processor, pictures())
    assert max(largest(ours(model, pictures()), expected)) < 1e-5
    assert found.scale == pytest.approx(float(original.logit_scale.detach().exp()))
    # A picture without its text is another vector: the numbers above are no accident of small models.
    assert float((expected[0][0] - expected[0][1]).abs().max()) > 1e-2

    (tmp_path / "b").mkdir()
    out = publish(model)
    assert layout.refusal(out) is None
    layout.write(out, tmp_path / "b")
    back, words = loaded(tmp_path / "b")
    assert type(back) is type(original)
    assert max(largest(theirs(back, words, pictures()), expected)) < 1e-5
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in original.state_dict().items())


def test_pictures_of_any_shape_go_through_the_same_crop(tmp_path):
    original = save_clip(tmp_path / "a")
    model = model_of(layout.read(open_checkpoint(tmp_path / "a")))
    (tmp_path / "b").mkdir()
    layout.write(publish(model), tmp_path / "b")
    shapes = pictures(sizes=((90, 50), (41, 77), (200, 60)))
    for folder in ("a", "b"):
        _, processor = loaded(tmp_path / folder)
        # Scaling rounds to a grey level, in another order than transformers'.
        assert largest(ours(model, shapes), theirs(original, processor, shapes))[0] < 5e-3


def test_padding_and_texts_beyond_the_context_change_nothing(tmp_path):
    original = save_clip(tmp_path)
    _, processor = loaded(tmp_path)
    model = model_of(layout.read(open_checkpoint(tmp_path)))
    for padding in ("longest", "max_length"):
        assert largest(ours(model, pictures()), theirs(original, processor, pictures(), padding=padding))[1] < 1e-5
    assert model.tokenizer(list(TEXTS))[0].shape[1] == 12  # the third text is cut, its end mark stays
    alone = torch.cat([model.embed_text([text]) for text in TEXTS])
    assert torch.allclose(alone, model.embed_text(list(TEXTS)), atol=1e-6)


def test_a_configuration_of_older_versions_is_read_at_the_real_end_mark(tmp_path):
    original = save_clip(tmp_path, text={"eos_token_id": 2})
    found = layout.read(open_checkpoint(tmp_path))
    end = found.tokenizer.eos_id
    assert end > 2
    assert found.eos_id == end
    assert any("eos_token_id 2" in note for note in found.notes)
    _, processor = loaded(tmp_path)
    assert max(largest(ours(model_of(found), pictures()), theirs(original, processor, pictures()))) < 1e-5


def test_an_end_mark_that_the_tokenizer_never_writes_is_refused(tmp_path):
    save_clip(tmp_path, text={"eos_token_id": 7})
    with pytest.raises(UserError, match="at the id 7"):
        layout.read(open_checkpoint(tmp_path))


def test_older_files_with_deeper_names_and_counters_are_read(tmp_path):
    save_clip(tmp_path)
    new = open_checkpoint(tmp_path)
    old = {_deeper(name): value for name, value in new.state.items()}
    old |= {
        "text_model.text_model.embeddings.position_ids": torch.arange(12)[None],
        "vision_model.vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    (tmp_path / "model.safetensors").unlink()
    torch.save(old, tmp_path / "pytorch_model.bin")
    found = open_checkpoint(tmp_path)
    assert layout.recognises(found)
    first, second = layout.read(new), layout.read(found)
    assert all(torch.equal(value, second.state[key]) for key, value in first.state.items())
    assert any(note.startswith("left out 2") and "position_ids" in note for note in second.notes)


def _deeper(name):
    side = name.partition(".")[0]
    return f"{side}.{name}" if side in ("text_model", "vision_model") else name


def test_every_entry_is_accounted_for(tmp_path):
    save_clip(tmp_path, vision={"num_hidden_layers": 1}, text={"num_hidden_layers": 1})
    tried, wrong = wrong_by_one(open_checkpoint(tmp_path), layout.read)
    assert tried > 22
    assert wrong == []


def test_odd_sizes_are_read_whole(tmp_path):
    vision = {"hidden_size": 36, "intermediate_size": 131, "num_attention_heads": 3, "layer_norm_eps": 1e-3}
    original = save_clip(tmp_path / "a", vision=vision, text={"intermediate_size": 99, "layer_norm_eps": 1e-4})
    _, processor = loaded(tmp_path / "a")
    model = model_of(layout.read(open_checkpoint(tmp_path / "a")))
    expected = theirs(original, processor, pictures())
    assert max(largest(ours(model, pictures()), expected)) < 1e-5
    (tmp_path / "b").mkdir()
    layout.write(publish(model), tmp_path / "b")
    assert max(largest(theirs(*loaded(tmp_path / "b"), pictures()), expected)) < 1e-5


@pytest.mark.parametrize(
    ("vision", "text", "width", "name", "count"),
    [
        ({"patch_size": 32}, {}, 512, "vit_base_patch32_clip_quickgelu_224", 151_277_313),
        (
            {"patch_size": 16, "hidden_act": "gelu"},
            {"hidden_act": "gelu"},
            512,
            "vit_base_patch16_clip_224",
            149_620_737,
        ),
        (
            {"patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
            | {"num_attention_heads": 16},
            {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            768,
            "vit_large_patch14_clip_quickgelu_224",
            427_616_513,
        ),
    ],
)
def test_published_sizes_have_exactly_their_parameters(vision, text, width, name, count):
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=width)
    with torch.device("meta"):
        original = CLIPModel(config)
    found = layout.read(Checkpoint(place="nowhere", state=original.state_dict(), config=config.to_dict()))
    assert found.image.name == name
    assert found.text.tokenizer == "clip"
    shapes = wanted(image=found.image, text=found.text, width=width, vocab_size=49_408, eos_id=found.eos_id)
    assert sum(value.numel() for value in shapes.values()) == count
    assert sum(value.numel() for value in original.parameters()) == count


def test_weights_without_their_configuration_say_what_is_missing(tmp_path):
    save_clip(tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        layout.read(open_checkpoint(tmp_path / "model.safetensors"))


def test_a_broken_configuration_is_named(tmp_path):
    save_clip(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    content["vision_config"]["num_hidden_layers"] = "two"
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="CLIPConfig"):
        layout.read(open_checkpoint(tmp_path))


def test_preprocessing_of_another_size_is_refused(tmp_path):
    save_clip(tmp_path)
    path = tmp_path / "processor_config.json"
    path = path if path.is_file() else tmp_path / "preprocessor_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace(f"{SIDE}", "48"), encoding="utf-8")
    with pytest.raises(UserError, match="cuts pictures to 48"):
        layout.read(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": {"name": "test_vit"}}, "'test_vit'"),
        ({"image": {"name": "efficientnet_lite0", "options": {}}}, "'efficientnet_lite0'"),
        ({"image": {"pool": "avg"}}, "vision transformer"),
        ({"image": {"head": "affine"}}, "'affine'"),
        ({"text": {"name": "bert", "pool": "default"}}, "causal"),
        ({"text": {"pool": "mean"}}, "'mean'"),
        ({"text": {"head": "mlp"}}, "'mlp'"),
        ({"state": {"bias": torch.zeros(())}}, "bias"),
        ({"eos_id": -1}, "end mark"),
    ],
)
def test_what_the_layout_cannot_express_is_said_before(tmp_path, change, said):
    save_clip(tmp_path)
    model = layout.read(open_checkpoint(tmp_path))
    for part in ("image", "text"):
        if part in change:
            model = replace(model, **{part: replace(getattr(model, part), **change[part])})
    if "state" in change:
        model = replace(model, state={**model.state, **change["state"]})
    if "eos_id" in change:
        model = replace(model, eos_id=-1)
    assert said in layout.refusal(model)


def test_a_trained_tokenizer_whose_end_mark_is_two_goes_out_and_comes_back(tmp_path):
    from unicl.data.text import train_tokenizer
    from unicl.model import ModelSettings, TwoTowers

    save_clip(tmp_path / "a")
    found = layout.read(open_checkpoint(tmp_path / "a"))
    words = train_tokenizer(TEXTS[:3], vocab_size=300, context=12)
    assert words.eos_id == 2
    settings = ModelSettings(image=found.image, text=replace(found.text, tokenizer="train"), width=16)
    torch.manual_seed(0)
    model = TwoTowers(settings, tokenizer=words).eval()
    model.image.set_normalisation(mean=found.mean, std=found.std)
    (tmp_path / "b").mkdir()
    assert layout.refusal(publish(model)) is None
    layout.write(publish(model), tmp_path / "b")
    back, processor = loaded(tmp_path / "b")
    assert back.config.text_config.eos_token_id == words.vocab_size - 1
    expected = theirs(back, processor, pictures())
    assert max(largest(ours(model, pictures()), expected)) < 1e-5
    again = model_of(layout.read(open_checkpoint(tmp_path / "b")))
    assert max(largest(ours(again, pictures()), expected)) < 1e-5


def test_weights_in_half_precision_are_read_in_single(tmp_path):
    save_clip(tmp_path)
    whole = layout.read(open_checkpoint(tmp_path))
    state = load_file(tmp_path / "model.safetensors")
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "model.safetensors")
    half = layout.read(open_checkpoint(tmp_path))
    key = "image.backbone.cls_token"
    assert half.state[key].dtype == torch.float32
    assert torch.allclose(half.state[key], whole.state[key], atol=1e-3)
