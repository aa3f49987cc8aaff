import math

import pytest
import torch

from unicl.errors import UserError
from unicl.similarity.find import find_similarity
from unicl.similarity.scale import Scale, ScaleSettings
from unicl.similarity.whole import cosine
from unicl.space import Embedding


def test_the_scale_starts_where_it_is_told_and_is_learned_as_a_logarithm():
    scale = Scale(ScaleSettings(init=20.0))
    assert math.isclose(scale().item(), 20.0, rel_tol=1e-6)
    scale().backward()
    assert math.isclose(scale.log_scale.grad.item(), 20.0, rel_tol=1e-6)


def test_the_clamp_moves_the_parameter_and_keeps_its_gradient_alive():
    scale = Scale(ScaleSettings(init=500.0, max=100.0))
    scale.clamp()
    assert math.isclose(scale.log_scale.item(), math.log(100), rel_tol=1e-6)
    scale().backward()
    assert scale.log_scale.grad.item() > 0


def test_a_scale_without_a_limit_is_left_alone():
    scale = Scale(ScaleSettings(init=500.0, max=None))
    scale.clamp()
    assert math.isclose(scale().item(), 500.0, rel_tol=1e-5)


def test_a_bias_is_learned_beside_the_scale():
    scale = Scale(ScaleSettings(init=10.0, bias=-10.0, max=None))
    assert scale.bias.item() == -10
    assert scale.bias.requires_grad


def test_a_fixed_scale_does_not_learn():
    assert not Scale(ScaleSettings(learned=False)).log_scale.requires_grad


def embedding(vectors):
    return Embedding(whole=vectors, features=vectors)


def test_cosines_stay_in_float32_under_autocast():
    vectors = torch.nn.functional.normalize(torch.randn(4, 16), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = cosine(embedding(vectors.bfloat16()), embedding(vectors))
        exact, turned = cosine(embedding(vectors), embedding(vectors))
    assert inside.dtype == exact.dtype == torch.float32
    assert torch.equal(exact, vectors @ vectors.T)
    assert turned is exact


def test_an_unknown_similarity_suggests_a_near_one_and_a_file_gives_ones_own(tmp_path):
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        find_similarity("cosin")
    (tmp_path / "mine.py").write_text(
        "def half(images, texts):\n    s = images.whole @ texts.whole.T / 2\n    return s, s\n"
    )
    own, _ = find_similarity(f"{tmp_path / 'mine.py'}:half")(embedding(torch.ones(1, 4)), embedding(torch.ones(1, 4)))
    assert own.item() == 2
