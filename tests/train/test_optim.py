import math

import torch
from torch import nn

from unicl.train.optim import Average, OptimSettings, adamw, clip, learning_rate, parameter_groups


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def test_gains_biases_and_scalars_do_not_decay():
    net = model()
    net.register_parameter("log_scale", nn.Parameter(torch.tensor(1.0)))
    decaying, others = parameter_groups(net, weight_decay=0.2)
    assert decaying["weight_decay"] == 0.2
    assert [tuple(p.shape) for p in decaying["params"]] == [(3, 4), (2, 3)]
    assert others["weight_decay"] == 0
    assert len(others["params"]) == 5


def test_frozen_parameters_are_not_given_to_the_optimiser():
    net = model()
    net[0].requires_grad_(False)
    assert sum(len(g["params"]) for g in parameter_groups(net, weight_decay=0.1)) == 4


def test_the_rate_warms_up_and_falls_along_a_cosine_to_zero():
    settings = OptimSettings(lr=1.0, warmup=10)
    rates = [learning_rate(step, steps=110, settings=settings) for step in range(111)]
    assert math.isclose(rates[0], 0.1)
    assert math.isclose(rates[9], 1.0)
    assert math.isclose(rates[60], 0.5)
    assert abs(rates[110]) < 1e-12
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_warm_up_below_one_is_a_share_of_the_run():
    settings = OptimSettings(lr=1.0, warmup=0.1)
    assert math.isclose(learning_rate(4, steps=100, settings=settings), 0.5)


def test_clipping_returns_the_norm_before_and_none_leaves_the_gradient():
    net = model()
    net(torch.ones(1, 4)).sum().backward()
    before = clip(net.parameters(), norm=None)
    assert torch.isclose(clip(net.parameters(), norm=0.01), before)
    assert torch.isclose(clip(net.parameters(), norm=None), torch.tensor(0.01), rtol=1e-3)


def test_swapping_the_average_twice_brings_back_the_very_same_weights():
    net = model()
    average = Average(net, decay=0.9)
    optimiser = adamw(net, OptimSettings(lr=0.1))
    net(torch.ones(1, 4)).sum().backward()
    optimiser.step()
    average.update(net, step=1000)
    own = {name: value.clone() for name, value in net.state_dict().items()}
    average.swap(net)
    assert not torch.equal(net.state_dict()["0.weight"], own["0.weight"])
    average.swap(net)
    assert all(torch.equal(value, own[name]) for name, value in net.state_dict().items())


def test_the_average_moves_by_its_decay():
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    average = Average(net, decay=0.75)
    nn.init.ones_(net.weight)
    average.update(net, step=10**6)
    assert math.isclose(average.state["weight"].item(), 0.25, rel_tol=1e-6)
