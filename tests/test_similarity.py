import math

import torch

from unicl.similarity import Scale, ScaleSettings, cosine


def test_the_scale_starts_where_it_is_told_and_is_learned_as_a_logarithm():
    scale = Scale(ScaleSettings(init=20.0))
    assert math.isclose(scale(torch.ones(1)).item(), 20.0, rel_tol=1e-6)
    scale(torch.ones(1)).sum().backward()
    assert math.isclose(scale.log_scale.grad.item(), 20.0, rel_tol=1e-6)


def test_the_clamp_moves_the_parameter_and_keeps_its_gradient_alive():
    scale = Scale(ScaleSettings(init=500.0, max=100.0))
    scale.clamp()
    assert math.isclose(scale.log_scale.item(), math.log(100), rel_tol=1e-6)
    scale(torch.ones(1)).sum().backward()
    assert scale.log_scale.grad.item() > 0


def test_a_scale_without_a_limit_is_left_alone():
    scale = Scale(ScaleSettings(init=500.0, max=None))
    scale.clamp()
    assert math.isclose(scale(torch.ones(1)).item(), 500.0, rel_tol=1e-5)


def test_a_bias_is_added_after_the_scale_and_learns():
    scale = Scale(ScaleSettings(init=10.0, bias=-10.0, max=None))
    out = scale(torch.tensor([0.5]))
    assert math.isclose(out.item(), -5.0, rel_tol=1e-5)
    out.sum().backward()
    assert scale.bias.grad.item() == 1


def test_a_fixed_scale_does_not_learn():
    assert not Scale(ScaleSettings(learned=False)).log_scale.requires_grad


def test_cosines_stay_in_float32_under_autocast():
    vectors = torch.nn.functional.normalize(torch.randn(4, 16), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cosine(vectors.bfloat16(), vectors)
        exact = cosine(vectors, vectors)
    assert inside.dtype == exact.dtype == torch.float32
    assert torch.equal(exact, vectors @ vectors.T)
