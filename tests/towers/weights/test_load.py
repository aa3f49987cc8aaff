"""Weights from files and folders: strictly, or a message that says what does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, CLIPConfig, CLIPModel, MT5Config, MT5Model

from open_clip_models import SIZE, TEXT, VISION, WIDTH, build, clip_tokens
from unicl.data.text import load_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers
from unicl.towers.build import build_image_tower
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, TextTower
from unicl.towers.weights.load import load_text_weights

TINY = ImageSettings(name="test_vit", size=32)
WORDS = TextSettings(layers=2, dim=32, heads=4, context=12)


def _image(settings: ImageSettings = TINY, *, width: int = 8) -> ImageTower:
    return ImageTower(settings, width=width)


def _text(settings: TextSettings = WORDS) -> TextTower:
    return TextTower(settings, width=8, vocab_size=40, eos_id=2, pad_id=0)


def _equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt", "folder/model.safetensors", "folder/any.pth"])
def test_timm_weights_load_without_their_classifier(tmp_path: Path, file: str) -> None:
    model = timm.create_model("test_vit", img_size=32, num_classes=5)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    save_file(model.state_dict(), path) if path.suffix == ".safetensors" else torch.save(model.state_dict(), path)
    source = path.parent if "folder" in file else path
    tower = build_image_tower(replace(TINY, weights=str(source)), width=8)
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in tower.backbone.state_dict().items())


def test_positions_of_timm_weights_fit_another_size(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), tmp_path / "w.pt")
    tower = build_image_tower(replace(TINY, size=64, weights=str(tmp_path / "w.pt")), width=8)
    assert tower(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).whole.isfinite().all()


@pytest.mark.parametrize("container", ["state_dict", "model", ""])
def test_training_checkpoints_of_others_are_unpacked(tmp_path: Path, container: str) -> None:
    source = _image()
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save({container: state, "epoch": 3} if container else state, tmp_path / "w.pt")
    assert _equal(build_image_tower(replace(TINY, weights=str(tmp_path)), width=8), source)


def test_both_towers_come_out_of_one_model_of_ours(tmp_path: Path) -> None:
    image, text = _image(), _text()
    model = nn.ModuleDict({"image": image, "text": text})
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert _equal(build_image_tower(replace(TINY, weights=str(tmp_path)), width=8), image)
    other = _text()
    load_text_weights(other, source=str(tmp_path), name="clip")
    assert _equal(other, text)


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_read_for_its_weights(tmp_path: Path) -> None:
    tower = _image().eval()
    torch.jit.trace(tower.backbone, torch.zeros(1, 3, 32, 32), check_trace=False).save(str(tmp_path / "w.pt"))
    loaded = build_image_tower(replace(TINY, weights=str(tmp_path / "w.pt")), width=8)
    assert _equal(loaded.backbone, tower.backbone)


def test_the_encoder_of_a_larger_text_model_loads_from_its_folder(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    model = BertForMaskedLM(config)
    model.save_pretrained(tmp_path)
    tower = _text(replace(WORDS, name=str(tmp_path), weights=str(tmp_path)))
    load_text_weights(tower, source=str(tmp_path), name=str(tmp_path))
    assert _equal(tower.backbone, model.bert)
    torch.save(model.state_dict(), tmp_path / "alone.pt")
    other = _text(replace(WORDS, name=str(tmp_path), weights=str(tmp_path)))
    load_text_weights(other, source=str(tmp_path / "alone.pt"), name=str(tmp_path))
    assert _equal(other.backbone, model.bert)


def test_a_text_folder_of_another_depth_is_refused(tmp_path: Path) -> None:
    small = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(**small, num_hidden_layers=1)).save_pretrained(tmp_path / "one")
    BertModel(BertConfig(**small, num_hidden_layers=2)).save_pretrained(tmp_path / "two")
    for name, source, reason in (("one", "two", "unexpected"), ("two", "one", "missing")):
        tower = _text(replace(WORDS, name=str(tmp_path / name), weights="file"))
        with pytest.raises(UserError, match=rf"{reason} \(encoder\.layer\.1\."):
            load_text_weights(tower, source=str(tmp_path / source), name=name)


def test_what_is_missing_and_left_over_is_named(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", img_size=32).state_dict()
    state["extra.weight"] = state.pop("norm.weight")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"1 missing \(norm\.weight\) and 1 unexpected \(extra\.weight\)"):
        build_image_tower(replace(TINY, weights=str(tmp_path / "w.pt")), width=8)


def test_a_wrong_width_is_named(tmp_path: Path) -> None:
    torch.save(_image(width=6).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"head\.weight is \(6, 64\) there, \(8, 64\) here"):
        build_image_tower(replace(TINY, weights=str(tmp_path / "w.pt")), width=8)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": Path}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt is refused: it is a pickle that wants pathlib"):
        build_image_tower(replace(TINY, weights=str(tmp_path / "w.pt")), width=8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot be read as weights"), (b"no weights", "cannot be read as weights"), (None, "no weights at")],
)
def test_a_file_that_holds_no_weights_says_so(tmp_path: Path, content: bytes | None, reason: str) -> None:
    for name in ("w.pt", "w.safetensors"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=reason):
            build_image_tower(replace(TINY, weights=str(tmp_path / name)), width=8)


SIZES = {"patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 1}
QUICK = ImageSettings(name="vit_base_patch16_clip_quickgelu_224", size=SIZE, options=SIZES)
PLAIN = replace(QUICK, name="vit_base_patch16_clip_224")
GELU = {"hidden_act": "gelu"}
CAUSAL = TextSettings(layers=2, dim=64, heads=1, context=12)


def _openai(file: Path) -> nn.Module:
    theirs = build(VISION, TEXT, quick_gelu=True)
    sizes = {"input_resolution": SIZE, "context_length": 12, "vocab_size": 49_408}
    torch.save(theirs.state_dict() | {name: torch.tensor(size) for name, size in sizes.items()}, file)
    return theirs


def _words(settings: TextSettings = CAUSAL) -> TextTower:
    return TextTower(settings, width=WIDTH, vocab_size=49_408, eos_id=49_407, pad_id=0)


def test_towers_of_openais_take_its_weights_with_their_heads(tmp_path: Path) -> None:
    theirs = _openai(tmp_path / "w.pt")
    image = build_image_tower(replace(QUICK, weights=str(tmp_path / "w.pt")), width=WIDTH).eval()
    text = _words()
    load_text_weights(text, source=str(tmp_path / "w.pt"), name="clip")
    pixels = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    tokens = clip_tokens()
    wanted = theirs.encode_image((pixels / 255 - image.mean) / image.std, normalize=True)
    torch.testing.assert_close(image(pixels).whole, wanted, rtol=0, atol=1e-5)
    found = text.eval()(tokens, tokens > 0).whole
    torch.testing.assert_close(found, theirs.encode_text(tokens, normalize=True), rtol=0, atol=1e-5)


def test_another_size_and_a_shorter_context_fit_too(tmp_path: Path) -> None:
    _openai(tmp_path / "w.pt")
    image = build_image_tower(replace(QUICK, size=96, weights=str(tmp_path / "w.pt")), width=WIDTH)
    assert image(torch.zeros(1, 3, 96, 96, dtype=torch.uint8)).whole.isfinite().all()
    short, long = _words(replace(CAUSAL, context=8)), _words()
    for tower in (short, long):
        load_text_weights(tower, source=str(tmp_path / "w.pt"), name="clip")
    tokens = clip_tokens(8)
    torch.testing.assert_close(short(tokens, tokens > 0).whole, long(tokens, tokens > 0).whole)


def test_the_wrong_activation_is_refused(tmp_path: Path) -> None:
    _openai(tmp_path / "w.pt")
    with pytest.raises(UserError, match="made with QuickGELU, but the image tower computes GELU; choose a model with"):
        build_image_tower(replace(PLAIN, weights=str(tmp_path / "w.pt")), width=WIDTH)
    with pytest.raises(UserError, match="but the text tower computes GELU"):
        load_text_weights(
            _words(replace(CAUSAL, options={"hidden_act": "gelu"})), source=str(tmp_path / "w.pt"), name=""
        )


def test_weights_that_say_no_activation_fit_both(tmp_path: Path) -> None:
    torch.save(build(VISION, TEXT).state_dict(), tmp_path / "w.pt")
    for settings in (QUICK, PLAIN):
        tower = build_image_tower(replace(settings, weights=str(tmp_path / "w.pt")), width=WIDTH)
        assert torch.equal(tower.head.weight, build(VISION, TEXT).visual.proj.T)


def test_a_timm_tower_of_open_clips_needs_no_configuration_if_it_is_named(tmp_path: Path) -> None:
    theirs = build({"timm_model_name": "test_vit", "timm_pool": "token"}, TEXT, custom=True)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    tower = build_image_tower(ImageSettings(name="test_vit", size=160, weights=str(tmp_path / "w.pt")), width=WIDTH)
    assert all(
        torch.equal(value, theirs.visual.trunk.state_dict()[k]) for k, value in tower.backbone.state_dict().items()
    )


def test_a_checkpoint_of_another_depth_or_head_names_what_differs(tmp_path: Path) -> None:
    _openai(tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"12 unexpected \(transformer\.resblocks\.1\.attn"):
        load_text_weights(_words(replace(CAUSAL, layers=1)), source=str(tmp_path / "w.pt"), name="clip")
    with pytest.raises(UserError, match=r"no place for 'image\.head"):
        build_image_tower(replace(QUICK, head="mlp", weights=str(tmp_path / "w.pt")), width=WIDTH)


def test_a_tower_of_a_transformers_pair_is_taken_with_its_head(tmp_path: Path) -> None:
    small = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    vision = small | {"image_size": SIZE, "patch_size": 16}
    config = CLIPConfig(text_config=small | {"eos_token_id": 49_407}, vision_config=vision, projection_dim=WIDTH)
    theirs = CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    tower = build_image_tower(replace(QUICK, weights=str(tmp_path)), width=WIDTH).eval()
    assert torch.equal(tower.head.weight, theirs.visual_projection.weight)


def test_a_run_and_a_model_folder_of_ours_give_their_towers(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("clip", context=12)
    model = TwoTowers(ModelSettings(image=TINY, text=CAUSAL, width=8), tokenizer=tokenizer)
    model.save(tmp_path / "run" / "checkpoints" / "best")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"best": "best", "last": "best"}))
    for place in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "best"):
        assert _equal(build_image_tower(replace(TINY, weights=str(place)), width=8), model.image)
        text = TextTower(CAUSAL, width=8, vocab_size=49_408, eos_id=49_407, pad_id=0)
        load_text_weights(text, source=str(place), name="clip")
        assert _equal(text, model.text)


def test_the_encoder_of_a_t5_loads_from_its_folder(tmp_path: Path) -> None:
    config = MT5Config(vocab_size=40, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, pad_token_id=0)
    model = MT5Model(config)
    model.save_pretrained(tmp_path)
    tower = _text(replace(WORDS, name=str(tmp_path), weights=str(tmp_path), pool="mean"))
    load_text_weights(tower, source=str(tmp_path), name=str(tmp_path))
    wanted = model.get_encoder().state_dict()
    found = tower.backbone.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())
