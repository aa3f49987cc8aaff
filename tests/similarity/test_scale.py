import math

import torch

from unicl.similarity.scale import Scale, ScaleSettings


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


def test_a_temperature_divides_and_is_learned_as_it_is():
    scale = Scale(ScaleSettings(init=4.0, form="divisor", max=None))
    assert math.isclose(scale.temperature.item(), 0.25)
    assert [name for name, _ in scale.named_parameters()] == ["temperature"]
    with torch.no_grad():
        scale.temperature.mul_(2)
    assert math.isclose(scale.value, 2.0)
    assert math.isclose(scale.logarithm().item(), math.log(2), rel_tol=1e-6)
    scale().backward()
    # d(1/s)/ds = -1/s²
    assert math.isclose(scale.temperature.grad.item(), -1 / 0.5**2, rel_tol=1e-6)


def test_limits_are_those_of_the_multiplier_in_either_form():
    for form in ("logarithm", "divisor"):
        for init, end in ((500.0, 100.0), (0.5, 1.0), (7.0, 7.0)):
            scale = Scale(ScaleSettings(init=init, min=1.0, max=100.0, form=form))
            scale.clamp()
            assert math.isclose(scale.value, end, rel_tol=1e-5)
    # Chinese-CLIP's limits of the parameter.
    low = Scale(ScaleSettings(init=0.5, min=1.0))
    low.clamp()
    assert low.log_scale.item() == 0


def test_a_temperature_without_a_limit_is_left_alone():
    scale = Scale(ScaleSettings(init=500.0, max=None, form="divisor"))
    scale.clamp()
    assert math.isclose(scale.value, 500.0, rel_tol=1e-5)
