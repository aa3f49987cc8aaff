"""What an export is compared on."""

import pytest
import torch

from unicl.data.sources import load_all
from unicl.errors import UserError
from unicl.use.export.sample import draw, made_pictures


def test_pictures_and_captions_are_the_users_and_those_that_cannot_be_read_are_left_out(model, photos):
    found = draw(model, load_all([str(photos)]), count=4)
    assert found.real
    assert found.pixels.shape == (4, 3, 32, 32)
    assert found.more_pixels.shape == (4, 3, 32, 32)
    assert not any(torch.equal(a, b) for a in found.pixels for b in found.more_pixels)
    assert "pictures of photos" in found.origin


def test_a_sample_is_spread_over_all_pictures(model, photos):
    first = draw(model, load_all([str(photos)]), count=2)
    every = draw(model, load_all([str(photos)]), count=6)
    picked = torch.cat([first.pixels, first.more_pixels])
    ordered = torch.cat([every.pixels, every.more_pixels])
    places = [next(k for k, row in enumerate(ordered) if torch.equal(row, picture)) for picture in picked]
    assert len(set(places)) == 4


def test_captions_are_compared_beside_made_up_texts_of_all_lengths(model, photos):
    (photos / "captions.csv").write_text(
        "file,title\n" + "".join(f"temple/{k}.jpg,a temple number {k}\n" for k in range(6)), encoding="utf-8"
    )
    found = draw(model, load_all([str(photos / "captions.csv")]), count=3)
    assert sum(text.startswith("a temple number") for text in found.texts) == 3
    lengths = model.tokenizer.lengths(found.texts)
    assert lengths.min() < 8
    assert lengths.max() > model.tokenizer.context


def test_without_data_pictures_are_made_up_and_the_same_each_time(model):
    one, two = draw(model, None, count=5), draw(model, None, count=5)
    assert not one.real
    assert len(one.pixels) == len(one.more_pixels) == 5
    assert torch.equal(one.pixels, two.pixels)
    assert one.texts == two.texts
    assert not set(one.texts) & set(one.more_texts)


def test_made_up_pictures_differ_in_light_and_in_contrast():
    pictures = made_pictures(8, side=16).float()
    assert pictures.mean((1, 2, 3)).std() > 5
    assert pictures.std((1, 2, 3)).min() > 5


def test_sources_without_a_readable_picture_are_told(model, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"\xff\xd8 nothing")
    with pytest.raises(UserError, match="no picture of broken can be read"):
        draw(model, load_all([str(tmp_path / "broken")]), count=2)
