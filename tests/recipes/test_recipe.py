import pytest

from unicl.errors import UserError
from unicl.recipes.recipe import Size, chosen, known


def test_a_size_is_found_by_its_name_and_a_near_one_is_suggested():
    sizes = {"laptop": Size(), "b32": Size(width=512)}
    assert chosen(sizes, "b32").width == 512
    with pytest.raises(UserError, match="did you mean 'b32'"):
        chosen(sizes, "b_32")


def test_a_value_that_no_recipe_knows_is_refused_with_those_that_there_are():
    known("a", among=("a", "b"), argument="letter")
    with pytest.raises(UserError, match="unknown letter 'c'; this recipe knows a, b"):
        known("c", among=("a", "b"), argument="letter")
