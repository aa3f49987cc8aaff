"""The two transformers of OpenAI and open_clip as values: settings from sizes, and sizes from settings."""

from dataclasses import replace

import pytest
import torch

from unicl.data.image import Frame
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings
from unicl.towers.weights.native import Vision, Words, find_vision, find_words, vision_settings, words_settings
from unicl.towers.weights.published import Published

TINY = Vision(width=64, layers=2, heads=2, patch=16, size=64, inner=256)
WORDS = Words(width=32, layers=1, heads=2, inner=128, context=12, vocab_size=50)


def _published(text: TextSettings | None, *, eos_id: int = 49) -> Published:
    return Published(origin="a test", image=None, text=text, width=8, state={}, vocab_size=50, eos_id=eos_id, pad_id=0)


@pytest.mark.parametrize(
    "vision",
    [
        TINY,
        replace(TINY, act="gelu", inner=239),
        replace(TINY, act="gelu_tanh", heads=1, patch=32),
        replace(TINY, layer_scale=True),
        replace(TINY, mean=True),
        replace(TINY, mean=True, mean_first=True),
        Vision(width=1408, layers=1, heads=16, patch=14, size=224, inner=6144),
    ],
)
def test_an_image_tower_is_what_it_was_built_from(vision: Vision) -> None:
    assert find_vision(vision_settings(vision, frame=Frame()), width=8) == vision


def test_published_sizes_have_timms_names() -> None:
    large = Vision(width=1024, layers=24, heads=16, patch=14, size=336, inner=4096)
    found = vision_settings(large, frame=Frame(mode="squash"))
    assert (found.name, found.size, found.options) == ("vit_large_patch14_clip_quickgelu_224", 336, {})
    assert found.frame.mode == "squash"


@pytest.mark.parametrize(
    "settings",
    [
        ImageSettings(name="test_vit", size=32),
        ImageSettings(name="test_vit", size=32, head="affine"),
        ImageSettings(name="resnet50_clip", size=64, head="none"),
        replace(vision_settings(TINY, frame=Frame()), head="mlp"),
        replace(vision_settings(TINY, frame=Frame()), pool="map"),
        replace(vision_settings(replace(TINY, first_norm=False), frame=Frame())),
    ],
)
def test_other_image_towers_are_not_taken_for_one(settings: ImageSettings) -> None:
    assert find_vision(settings, width=1024 if settings.head == "none" else 8) is None


def test_a_tower_without_its_first_norm_is_built_so() -> None:
    with torch.device("meta"):
        tower = ImageTower(vision_settings(replace(TINY, first_norm=False), frame=Frame()), width=8)
    assert "backbone.norm_pre.weight" not in tower.state_dict()


@pytest.mark.parametrize(
    "words",
    [
        WORDS,
        replace(WORDS, act="gelu", eps=1e-6, inner=100, head="affine"),
        replace(WORDS, act="gelu_tanh", pool="last"),
        replace(WORDS, causal=False, pool="last"),
        replace(WORDS, causal=False, pool="first", act="gelu"),
        replace(WORDS, causal=False, act="quick_gelu"),
    ],
)
def test_a_text_tower_is_what_it_was_built_from(words: Words) -> None:
    assert find_words(_published(words_settings(words, tokenizer="clip"))) == words


def test_an_end_mark_that_is_not_the_highest_id_is_named_by_its_id() -> None:
    found = find_words(_published(words_settings(WORDS, tokenizer="clip"), eos_id=2))
    assert isinstance(found, Words)
    assert found.pool == "eos"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (None, "there is no text tower"),
        (TextSettings(name="bert", layers=1, dim=32, heads=2), "'bert'"),
        (TextSettings(layers=1, dim=32, heads=2, options={"hidden_act": "relu"}), "'relu'"),
        (TextSettings(name="siglip", layers=1, dim=32, heads=2), "does not see padding"),
        (TextSettings(layers=1, dim=32, heads=2, head="mlp"), "its head is 'mlp'"),
        (TextSettings(layers=1, dim=32, heads=2, pool="mean"), "it pools 'mean'"),
        (TextSettings(layers=1, dim=32, heads=2, pool="last"), "it pools 'last'"),
    ],
)
def test_other_text_towers_say_what_they_are(settings: TextSettings | None, reason: str) -> None:
    assert reason in str(find_words(_published(settings)))
