from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unicl.use.explain.heat import STEPS, STRENGTH, Range, colours, explained_range, laid_over, layer, levels, ranges


def test_one_scale_for_all_words_is_that_of_all_their_values(found):
    shown = ranges(found, scale="joint")
    assert {(each.low, each.high) for each in (*shown.words, shown.whole)} == {(0.0, 1.0)}


def test_a_scale_for_each_word_is_that_of_its_own_values(found):
    shown = ranges(found, scale="word")
    assert [each.low for each in shown.words] == pytest.approx([0, 0, 0.2])
    assert [each.high for each in shown.words] == pytest.approx([0.5, 1, 0.2])


def test_gradients_begin_at_0_and_the_whole_text_has_its_own_scale(found):
    shown = ranges(replace(found, method="gradients", heat=found.heat + 1, whole=found.whole * 7), scale="joint")
    assert {(each.low, each.high) for each in shown.words} == {(0.0, 2.0)}
    assert (shown.whole.low, shown.whole.high) == (0.0, 7.0)


@pytest.mark.parametrize("method", ["products", "attention", "gradients"])
@pytest.mark.parametrize("scale", ["joint", "word"])
def test_what_the_colours_stand_for_is_said(found, method, scale):
    said = explained_range(replace(found, method=method), scale=scale)
    assert ("own lowest" in said) == (scale == "word")
    assert ("gradients" in said) == (method == "gradients")


def test_shares_of_a_range_stay_inside_it():
    assert [Range(1.0, 3.0).share(value) for value in (0.0, 1.0, 2.0, 3.0, 9.0)] == [0, 0, 0.5, 1, 1]
    assert Range(2.0, 2.0).share(2.0) == 0


def test_heat_lies_where_its_places_lie():
    heat = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    wide = levels(heat, Range(0.0, 5.0), size=(90, 60))
    assert wide.shape == (60, 90)
    assert 0 <= wide.min() <= wide.max() <= 1
    assert np.unravel_index(wide.argmax(), wide.shape)[0] > 30
    assert np.unravel_index(wide.argmax(), wide.shape)[1] > 60
    assert wide[:20, :50].max() < 0.05


def test_heat_that_is_the_same_everywhere_has_no_colour():
    assert not levels(torch.full((3, 3), 0.4), Range(0.4, 0.4), size=(12, 12)).any()


def test_colours_become_brighter_and_cover_more():
    palette, cover = colours()
    assert palette.shape == (STEPS, 3)
    assert (np.diff(cover.astype(int)) >= 0).all()
    assert (cover[0], cover[-1]) == (0, 255)
    assert (np.diff(palette.astype(int) @ (0.299, 0.587, 0.114)) > -1).all()


def test_a_layer_lets_through_what_is_cold():
    drawn = layer(np.array([[0.0, 1.0]], dtype=np.float32)).convert("RGBA")
    assert [drawn.getpixel((x, 0))[3] for x in (0, 1)] == [0, 255]


def test_a_picture_under_heat_changes_where_the_heat_is():
    picture = Image.new("RGB", (8, 4), "#808080")
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[:, 2:] = 1
    drawn = laid_over(picture, heat, corner=(4, 0))
    assert {drawn.getpixel((x, 1)) for x in range(6)} == {(128, 128, 128)}
    hottest = np.array(colours()[0][-1])
    assert np.abs(np.array(drawn.getpixel((7, 1))) - (STRENGTH * hottest + (1 - STRENGTH) * 128)).max() <= 1.5
