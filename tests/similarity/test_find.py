import pytest
import torch

from unicl.errors import UserError
from unicl.similarity.find import OF_PARTS, find_similarity
from unicl.similarity.tokenwise import tokenwise
from unicl.similarity.whole import cosine
from unicl.space import Embedding

ONE = Embedding(whole=torch.ones(1, 4), features=torch.ones(1, 0))


def test_a_similarity_is_found_by_its_name_and_takes_its_options():
    assert find_similarity("cosine") is cosine
    assert find_similarity("tokenwise") is tokenwise
    assert find_similarity("tokenwise", options={"pads": "zero"}).keywords == {"pads": "zero"}


def test_an_unknown_similarity_suggests_a_near_one_and_a_file_gives_ones_own(tmp_path):
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        find_similarity("cosin")
    (tmp_path / "mine.py").write_text(
        "def half(images, texts):\n    s = images.whole @ texts.whole.T / 2\n    return s, s\n"
    )
    own, _ = find_similarity(f"{tmp_path / 'mine.py'}:half")(ONE, ONE)
    assert own.item() == 2


def test_an_option_that_a_similarity_does_not_take_is_an_error():
    with pytest.raises(UserError, match=r"has no option 'pad' .did you mean 'pads'.*it takes pads"):
        find_similarity("tokenwise", options={"pad": "zero"})
    with pytest.raises(UserError, match="it takes none"):
        find_similarity("cosine", options={"pads": "zero"})


@pytest.mark.parametrize("name", OF_PARTS)
def test_similarities_of_parts_say_which_tower_gives_none(name):
    with pytest.raises(UserError, match=rf"{name}.*image tower gives none"):
        find_similarity(name)(ONE, ONE)
