from dataclasses import replace

import numpy as np
import pytest
import torch

from unicl.use.explain.fonts import VARIABLE, find_fonts
from unicl.use.explain.heat import Range
from unicl.use.explain.picture import LEAST, RED, all_texts, draw, heated, index_picture
from unicl.use.explain.view import shown

RED_RGB = tuple(bytes.fromhex(RED[1:]))


@pytest.fixture
def fonts(found, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    return find_fonts(all_texts(found))


def test_all_that_is_drawn_is_looked_for_in_fonts(found):
    texts = " ".join(all_texts(replace(found, words=("红",), notes=("绿",))))
    assert all(part in texts for part in (found.text, "红", "绿", "<bos>", "flower.jpg"))


def test_a_sheet_has_a_row_of_large_pictures_and_one_of_words(found, fonts):
    sheet = draw(found, fonts=fonts)
    assert sheet.mode == "RGB"
    assert sheet.width >= LEAST
    shorter = draw(replace(found, words=found.words[:1], heat=found.heat[:1], index=None), fonts=fonts)
    assert shorter.width < sheet.width
    taller = draw(
        replace(found, words=found.words * 9, heat=found.heat.repeat(9, 1, 1), scores=(0.1,) * 27), fonts=fonts
    )
    assert taller.height > sheet.height
    assert taller.width == sheet.width


@pytest.mark.parametrize(("method", "scale"), [("attention", "word"), ("gradients", "joint")])
def test_every_method_is_drawn_in_every_scale(found, fonts, method, scale):
    drawn = draw(replace(found, method=method, index=None), fonts=fonts, scale=scale)
    assert len(drawn.getcolors(1 << 24)) > 1000


def test_places_of_the_label_are_red_in_the_class_index(found, fonts):
    view = shown(found, box=(640, 640))
    pixels = np.array(index_picture(found.index, view, fonts=fonts))
    rows, columns = np.nonzero((pixels == RED_RGB).all(2))
    left, top, right, bottom = view.corners
    assert len(rows) > 50
    assert top + (bottom - top) / 2 - 1 <= rows.min()
    assert rows.max() <= bottom
    assert left <= columns.min()
    assert columns.max() <= left + (right - left) / 3
    none = np.array(index_picture(replace(found.index, wanted=()), view, fonts=fonts))
    assert not (none == RED_RGB).all(2).any()


def test_what_the_model_did_not_see_is_darker_and_has_no_heat(found):
    view = shown(found, box=(640, 640))
    drawn = np.array(heated(found, view, word=1, shown_range=Range(0.0, 1.0))).astype(int)
    plain = np.array(view.picture).astype(int)
    left, top, right, bottom = view.corners
    assert (drawn[:top] <= np.maximum(plain[:top], 29)).all()
    assert (
        np.abs(drawn[bottom - 40 : bottom, right - 40 : right] - plain[bottom - 40 : bottom, right - 40 : right]).max()
        <= 2
    )
    assert np.abs(drawn[top : top + 40, left : left + 40] - plain[top : top + 40, left : left + 40]).mean() > 20


def test_the_whole_text_is_drawn_by_its_own_heat(found):
    view = shown(found, box=(320, 320))
    one = replace(found, whole=torch.zeros(2, 3))
    drawn = heated(one, view, word=None, shown_range=Range(0.0, 1.0))
    left, top, right, bottom = view.corners
    box = (left, top, right, bottom)
    assert drawn.crop(box).tobytes() == view.picture.crop(box).tobytes()
