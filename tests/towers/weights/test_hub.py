"""The model hub: its cache without a network, and a plain error at once when there is neither."""

import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from unicl.errors import UserError
from unicl.towers.build import build_image_tower
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, TextTower
from unicl.towers.weights.hub import snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def _cached(cache: Path, repository: str) -> Path:
    home = cache / f"models--{repository.replace('/', '--')}"
    folder = home / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123")
    return folder


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["resnet18", "test_vit.r160_in1k"])
def test_no_network_is_an_error_at_once(name: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"hub cannot be reached for 'timm/.*give a file"):
        build_image_tower(ImageSettings(name=name, size=160, weights="hub"), width=8)
    assert time.monotonic() - start < 5


@pytest.mark.usefixtures("cache")
def test_hub_names_of_models_and_tokenizers_fail_at_once_too() -> None:
    with pytest.raises(UserError, match=r"hub cannot be reached for 'google-bert/bert-base-uncased'.*give a folder"):
        TextTower(TextSettings(name="google-bert/bert-base-uncased"), width=8, vocab_size=9, eos_id=2, pad_id=0)
    with pytest.raises(UserError, match="hub cannot be reached for 'timm/some_model'"):
        ImageTower(ImageSettings(name="hf-hub:timm/some_model"), width=8)


def test_a_model_in_the_cache_needs_no_network(cache: Path) -> None:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    folder = _cached(cache, "someone/small-bert")
    BertModel(config).save_pretrained(folder)
    assert snapshot("someone/small-bert") == folder
    tower = TextTower(TextSettings(name="someone/small-bert"), width=8, vocab_size=9, eos_id=2, pad_id=0)
    assert tower.feature_width == 8


def test_timm_weights_in_the_cache_need_no_network(cache: Path) -> None:
    model = timm.create_model("test_vit.r160_in1k")
    save_file(model.state_dict(), _cached(cache, "timm/test_vit.r160_in1k") / "model.safetensors")
    tower = build_image_tower(ImageSettings(name="test_vit.r160_in1k", size=160, weights="hub"), width=8)
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in tower.backbone.state_dict().items())


@pytest.mark.usefixtures("cache")
def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(UserError, match="no pretrained weights for 'botnet50ts_256'"):
        build_image_tower(ImageSettings(name="botnet50ts_256", weights="hub"), width=8)
