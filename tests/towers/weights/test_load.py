"""Weights from files and folders: strictly, or a message that says what does not fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from unicl.errors import UserError
from unicl.towers.image import ImageSettings, ImageTower, build_image_tower
from unicl.towers.text import TextSettings, TextTower
from unicl.towers.weights.load import load_text_weights, read_state

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
    with pytest.raises(UserError, match=r"w\.pt cannot be read as weights"):
        read_state(str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot be read as weights"), (b"no weights", "cannot be read as weights"), (None, "no weights at")],
)
def test_a_file_that_holds_no_weights_says_so(tmp_path: Path, content: bytes | None, reason: str) -> None:
    for name in ("w.pt", "w.safetensors"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=reason):
            read_state(str(tmp_path / name))


def test_a_file_of_something_else_says_so(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="no state dict of tensors"):
        read_state(str(tmp_path / "w.pt"))


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        read_state(str(tmp_path))
