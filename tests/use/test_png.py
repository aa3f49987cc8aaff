import numpy as np
import pytest
from PIL import Image, ImageColor, ImageFont

from unicl.use import png
from unicl.use.png import FILL, draw
from unicl.use.sheet import Bar, Part, Sheet, Tile


def made(count, *, share=0.5, name="photo.jpg", image=None):
    tiles = tuple(
        Tile(id=name, name=name, image=image, rank=k + 1, bars=(Bar("", "0.123", share),)) for k in range(count)
    )
    return Sheet(title="q", parts=(Part("", "a red fruit"), Part("+", "红色的水果")), note="note", tiles=tiles)


def filled(picture):
    return int((np.asarray(picture) == ImageColor.getrgb(FILL)).all(-1).sum())


@pytest.mark.parametrize(("count", "columns"), [(0, 3), (1, 3), (5, 3), (14, 5), (400, 12)])
def test_the_grid_is_a_little_wider_than_high(count, columns):
    picture = draw(made(count))
    assert picture.width == 2 * png.MARGIN + columns * (png.WIDE + png.GAP) - png.GAP


def test_bars_are_as_long_as_their_share():
    full, half, none = (filled(draw(made(1, share=share))) for share in (1.0, 0.5, 0.0))
    assert none == 0
    assert half == pytest.approx(full / 2, rel=0.05)


def test_the_picture_is_shown_whole_in_its_place(tmp_path):
    Image.new("RGB", (50, 100), (250, 0, 120)).save(tmp_path / "a.png")
    pixels = np.asarray(draw(made(1, image=tmp_path / "a.png"))).astype(int)
    rows, columns = np.nonzero(np.abs(pixels - (250, 0, 120)).max(-1) < 12)
    assert np.ptp(rows) == pytest.approx(png.TALL, abs=3)
    assert np.ptp(columns) == pytest.approx(png.TALL / 2, abs=3)


def test_long_and_odd_names_stay_inside_their_tile():
    plain = np.asarray(draw(made(1, name="a")))
    for name in ("x" * 500 + ".jpg", "照片" * 200, "a\nb\tc", "\U0001f34e\u202e", ""):
        odd = np.asarray(draw(made(1, name=name)))
        assert odd.shape == plain.shape
        changed = np.nonzero((odd != plain).any(-1))[1]
        assert changed.max(initial=0) < png.MARGIN + png.WIDE
    assert png._shortened("x" * 500 + "end.jpg", size=15, width=200).endswith("d.jpg")


def test_without_any_of_the_fonts_a_sheet_is_drawn_all_the_same(monkeypatch):
    monkeypatch.setattr(png, "FONTS", (("no such font.ttf", 0),))
    png._font.cache_clear()
    try:
        assert isinstance(png._font(15), ImageFont.FreeTypeFont | ImageFont.ImageFont)
        assert draw(made(2, name="照片.jpg")).height > png.TALL
    finally:
        png._font.cache_clear()


def test_a_long_question_goes_on_in_the_next_line(tmp_path):
    Image.new("RGB", (50, 100), "green").save(tmp_path / "a.png")
    parts = tuple(Part("+" if k else "", "many words and more", tmp_path / "a.png") for k in range(9))
    one, many = (draw(Sheet(title="", parts=parts[:n], note="", tiles=())) for n in (1, 9))
    assert many.width == one.width
    assert many.height >= one.height + 2 * png.QUESTION
