import pytest

from unicl.dials import Dials, assigned
from unicl.errors import UserError


def test_only_the_dials_that_were_given_change_the_recipe():
    plain, turned = assigned("clip", Dials(), more=()), assigned("clip", Dials(steps=7, lr=1e-4, batch=32), more=())
    assert (turned.fit.steps, turned.optim.lr, turned.data.batch) == (7, 1e-4, 32)
    assert turned.image == plain.image


def test_the_width_of_itl_halves_into_its_prefix_and_of_others_is_a_field():
    assert assigned("itl", Dials(width=128), more=()).terms[1].dims == 64
    assert assigned("clip", Dials(width=128), more=()).width == 128


def test_another_image_model_starts_at_random_unless_weights_are_named():
    assert assigned("clip", Dials(image="resnet18"), more=()).image.weights == "random"
    assert assigned("clip", Dials(image="resnet18", image_weights="hub"), more=()).image.weights == "hub"


def test_set_comes_last_and_a_recipe_without_texts_has_no_text_dial():
    assert assigned("clip", Dials(lr=1.0), more=["optim.lr=0.5"]).optim.lr == 0.5
    with pytest.raises(UserError, match="text"):
        assigned("supcon", Dials(tokenizer="clip"), more=())
