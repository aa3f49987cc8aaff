"""Systems that compare parts; what they learn is in tests/test_recipes.py."""

import pytest

from unicl.recipes.parts import FILIP, GLORIA, WUKONG, filip, gloria, wukong


@pytest.mark.parametrize(("recipe", "sizes"), [(filip, FILIP), (wukong, WUKONG), (gloria, GLORIA)])
def test_every_size_compares_parts_of_both_towers(recipe, sizes):
    for towers in sizes:
        made = recipe(towers=towers)
        assert made.image.parts is not None
        assert made.text.parts is not None


def test_gloria_shows_one_sentence_of_two_words_or_more():
    assert gloria().data.sentences
    assert gloria().data.least_words == 2


def test_the_rate_grows_with_the_root_of_the_batch():
    assert filip(batch=2048).optim.lr == 2 * filip(batch=512).optim.lr
