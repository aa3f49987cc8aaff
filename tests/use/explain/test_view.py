from dataclasses import replace

import pytest
from PIL import Image

from unicl.use.explain.area import Area
from unicl.use.explain.view import facts, index_words, number, shown, sought, title


def test_a_picture_is_shown_as_large_as_fits(found):
    view = shown(found, box=(320, 320))
    assert view.picture.size == (320, 214)
    assert view.corners == (50, 25, 250, 200)


def test_what_the_model_did_not_see_is_every_other_pixel(found):
    view = shown(found, box=(320, 320))
    left, top, right, bottom = view.corners
    seen = Image.new("L", view.picture.size, 0)
    for box in ((left, top, right, bottom), *view.shaded):
        assert seen.crop(box).getextrema() == (0, 0), "boxes do not overlap"
        seen.paste(1, box)
    assert seen.getextrema() == (1, 1)


def test_a_square_around_a_padded_picture_leaves_nothing_out(found):
    view = shown(replace(found, area=Area(left=0.0, top=-106.5, right=640.0, bottom=533.5)), box=(64, 64))
    assert view.shaded == ()


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (10, 90)])
def test_of_a_very_long_picture_only_what_was_seen_is_shown(found, size):
    picture = Image.new("RGB", size, "#336699")
    area = Area(left=0.0, top=0.0, right=float(size[0]), bottom=float(size[1]))
    view = shown(replace(found, picture=picture, area=area), box=(60, 60))
    assert view.picture.size == (60, 60)
    assert view.corners == (0, 0, 60, 60)
    assert view.shaded == ()


def test_numbers_have_three_digits_that_tell_something():
    given = (0.0, 0.5, -1.25, 0.0512, -0.00034, 1e-9, 12.3456)
    assert [number(value) for value in given] == ["0", "0.500", "-1.250", "0.0512", "-0.000340", "1.00e-09", "12.346"]


def test_what_is_said_names_the_text_the_model_and_the_picture(found):
    assert title(found) == '"a red <apple> & "pear"", filip: 0.321'
    assert facts(found)[0].startswith("flower.jpg, 2 x 3 places; each place times each part")
    assert "Grad-CAM" in facts(replace(found, method="gradients"))[0]


def test_an_index_says_which_number_is_which_part(found):
    assert index_words(found.index) == "0 <bos> · 1 a · 2 red · 3 apple · 4 <eos>; red: 2"
    whole = replace(found.index, label="", wanted=(1, 2, 3))
    assert index_words(whole).endswith("; any word of the text: 1, 2, 3")
    assert sought(found.index) == "red"
