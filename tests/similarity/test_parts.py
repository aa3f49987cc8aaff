import pytest
import torch

from unicl.errors import UserError
from unicl.similarity.parts import parts_of
from unicl.space import Embedding, Parts


def test_parts_are_those_of_the_embedding():
    parts = Parts(values=torch.ones(2, 3, 4), mask=torch.ones(2, 3, dtype=torch.bool))
    assert parts_of(Embedding(whole=torch.ones(2, 4), features=torch.ones(2, 0), parts=parts), "texts", of="x") is parts


@pytest.mark.parametrize(("column", "field"), [("images", r"image\.parts"), ("texts", r"text\.parts")])
def test_a_tower_without_parts_is_named_with_what_to_set(column, field):
    bare = Embedding(whole=torch.ones(2, 4), features=torch.ones(2, 0))
    with pytest.raises(UserError, match=f"'tokenwise' compares parts.*{field}"):
        parts_of(bare, column, of="tokenwise")
