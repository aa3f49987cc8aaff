import pytest

from unicl.errors import UserError
from unicl.lookup import find, names, recipe


def test_the_recipes_are_the_public_functions_of_their_module():
    whole = {"clip", "unicl", "florence", "itl", "siglip", "supcon", "cross_entropy"}
    others = {"filip", "wukong", "gloria", "lit", "chinese_clip", "bert_clip", "align", "convirt", "virtex"}
    others |= {"icmlm", "tag_prediction", "medclip", "caption_lm", "bag_prediction", "bag_contrast"}
    assert set(names()) == whole | others
    assert list(names()) == sorted(names())


def test_a_recipe_is_called_with_its_own_dials():
    made = recipe("itl", arguments={"class_share": 0.3, "class_dims": 64, "width": 256})
    assert [t.weight for t in made.terms] == [0.7, 0.3]
    assert made.terms[1].dims == 64
    assert made.width == 256


def test_the_prefix_is_half_of_the_width_and_one_space_is_a_field():
    assert recipe("itl", arguments={"width": 96}).terms[1].dims == 48
    assert len(recipe("itl", arguments={"nested": False}).terms) == 1


def test_a_dial_that_a_recipe_does_not_have_is_an_error():
    with pytest.raises(UserError, match=r"'clip' has no field 'class_share'.*it takes none"):
        recipe("clip", arguments={"class_share": 0.3})
    with pytest.raises(UserError, match="did you mean 'class_share'"):
        recipe("itl", arguments={"clas_share": 0.3})


def test_an_unknown_recipe_suggests_a_near_one():
    with pytest.raises(UserError, match=r"unknown recipe 'unicll'.*did you mean 'unicl'"):
        find("unicll")


def test_a_recipe_may_be_in_the_users_own_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\nfrom unicl.recipes import clip\n\n"
        "def wide():\n    return replace(clip(), name='wide', width=1024)\n\ndef wrong():\n    return 3\n"
    )
    assert recipe(f"{file}:wide", arguments={}).width == 1024
    with pytest.raises(UserError, match="returned int"):
        recipe(f"{file}:wrong", arguments={})
    with pytest.raises(UserError, match="unknown recipe"):
        find(f"{file}:nothing")
