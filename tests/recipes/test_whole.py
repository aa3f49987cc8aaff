"""Systems that compare whole vectors; what they learn is in tests/test_recipes.py."""

import math

from unicl.recipes.whole import clip, itl, siglip, unicl


def test_scales_start_where_the_papers_start_them():
    assert [recipe().terms[0].scale.init for recipe in (clip, unicl, siglip)] == [1 / 0.07, math.e, 10.0]
    assert [recipe().terms[0].scale.max for recipe in (clip, unicl, siglip)] == [100.0, None, None]


def test_a_nested_space_reads_classes_on_its_first_half():
    assert [term.dims for term in itl(width=96).terms] == [None, 48]
    assert len(itl(nested=False).terms) == 1
