import pytest

from unicl.config import assign, differences, from_plain, python_file, read_yaml, to_plain, to_yaml
from unicl.errors import UserError
from unicl.recipes import Recipe, itl


def test_a_recipe_survives_text():
    recipe = itl(class_share=0.3)
    assert from_plain(Recipe, to_plain(recipe), where="x") == recipe
    assert "class_dims" not in to_yaml(to_plain(recipe))


def test_fields_are_assigned_by_dotted_names_and_numbers_are_read():
    recipe = assign(itl(), ["optim.lr=1e-4", "data.balance=true", "terms.0.weight=0.9", "text.name=bert"])
    assert (recipe.optim.lr, recipe.data.balance, recipe.terms[0].weight, recipe.text.name) == (1e-4, True, 0.9, "bert")


def test_an_unknown_field_suggests_a_near_one():
    with pytest.raises(UserError, match=r"no field 'lrr' in 'optim'.*did you mean 'lr'"):
        assign(itl(), ["optim.lrr=1"])
    with pytest.raises(UserError, match="no field 'optmi'.*did you mean 'optim'"):
        assign(itl(), ["optmi.lr=1"])


def test_a_value_of_the_wrong_kind_names_the_field():
    with pytest.raises(UserError, match=r"data\.batch.*got 'many'"):
        assign(itl(), ["data.batch=many"])
    with pytest.raises(UserError, match="field=value"):
        assign(itl(), ["data.batch"])
    for nothing in ("nan", ".nan"):
        with pytest.raises(UserError, match="NaN is no number"):
            assign(itl(), [f"optim.lr={nothing}"])


def test_differences_are_dotted_leaves():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 1}
    assert differences(old, new) == {"a.c": (2, 5), "d": (3, None), "e": (None, 1)}


def test_a_broken_file_is_a_clear_error(tmp_path):
    (tmp_path / "x.yaml").write_text("- a\n- b\n")
    with pytest.raises(UserError, match="not a mapping"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="cannot read"):
        read_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match="no Python file"):
        python_file(tmp_path / "nothing.py")
