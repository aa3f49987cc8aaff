"""Towers with the weights that their settings name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.towers.build import build_image_tower, build_text_tower
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings

IMAGE = ImageSettings(name="test_vit", size=32)
TEXT = TextSettings(layers=1, dim=32, heads=2, context=12)


def test_towers_are_random_unless_weights_are_named(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a red dog"], vocab_size=400, context=12)
    image, text = build_image_tower(IMAGE, width=8), build_text_tower(TEXT, width=8, tokenizer=tokenizer)
    torch.save({f"image.{key}": value for key, value in image.state_dict().items()}, tmp_path / "image.pt")
    torch.save({f"text.{key}": value for key, value in text.state_dict().items()}, tmp_path / "text.pt")

    same = build_image_tower(replace(IMAGE, weights=str(tmp_path / "image.pt")), width=8)
    assert all(torch.equal(value, image.state_dict()[key]) for key, value in same.state_dict().items())
    assert not torch.equal(build_image_tower(IMAGE, width=8).head.weight, image.head.weight)
    settings = replace(TEXT, weights=str(tmp_path / "text.pt"), options={"vocab_size": tokenizer.vocab_size})
    words = build_text_tower(settings, width=8, tokenizer=tokenizer)
    assert all(torch.equal(value, text.state_dict()[key]) for key, value in words.state_dict().items())


def test_weights_that_are_nowhere_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights at"):
        build_image_tower(replace(IMAGE, weights=str(tmp_path / "none.pt")), width=8)
