from copy import deepcopy

import pytest
import torch
from torch import nn

import oracles
from unicl.errors import UserError
from unicl.train.lookahead import look_ahead
from unicl.train.optim import OptimSettings, make_optimiser, take_step
from unicl.train.ranks import Ranks
from unicl.train.state import load_state, save_state

SETTINGS = OptimSettings(method="sgd", lr=0.1, weight_decay=0.03, undecayed=(), lookahead=5)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()


def grads(model, number):
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()] for _ in range(number)
    ]


def trained(model, settings, all_grads, *, optimiser=None):
    optimiser = optimiser or make_optimiser(model, settings)
    for each in all_grads:
        for parameter, grad in zip(model.parameters(), each, strict=True):
            parameter.grad = grad.clone()
        take_step(optimiser, rate=settings.lr, seed=0)
    return optimiser


@pytest.mark.parametrize("steps", [1, 4, 5, 9, 10, 23])
def test_steps_are_those_of_plain_loops(steps):
    model = net()
    all_grads, begun = grads(model, steps), [p.detach().clone() for p in model.parameters()]
    trained(model, SETTINGS, all_grads)
    for k, (parameter, start) in enumerate(zip(model.parameters(), begun, strict=True)):
        flat = [each[k].flatten().tolist() for each in all_grads]
        wanted = oracles.looking_ahead(
            start.flatten().tolist(), flat, rate=0.1, momentum=0.9, decay=0.03, every=5, share=0.5
        )
        torch.testing.assert_close(parameter.flatten().tolist(), wanted, rtol=1e-12, atol=1e-14)


def test_the_whole_way_is_plain_sgd_bit_for_bit():
    model = net()
    plain, all_grads = deepcopy(model), grads(model, 12)
    theirs = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.03)
    for each in all_grads:
        for parameter, grad in zip(plain.parameters(), each, strict=True):
            parameter.grad = grad.clone()
        theirs.step()
    settings = OptimSettings(method="sgd", lr=0.1, weight_decay=0.03, undecayed=(), lookahead=5, lookahead_share=1.0)
    trained(model, settings, all_grads)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("method", ["sgd", "adamw"])
@pytest.mark.parametrize("cut", [3, 5, 7])
def test_a_resumed_run_has_the_slow_weights_and_goes_on_bit_for_bit(method, cut, tmp_path):
    settings = OptimSettings(method=method, lr=0.1, lookahead=5)
    whole, parted = net(), net()
    all_grads = grads(whole, 12)
    trained(whole, settings, all_grads)
    optimiser = trained(parted, settings, all_grads[:cut])
    save_state(tmp_path / "state", parted, optimiser, weights=True, ranks=Ranks())
    torch.manual_seed(9)
    fresh = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    again = make_optimiser(fresh, settings)
    load_state(tmp_path / "state", fresh, again, weights=True, ranks=Ranks())
    trained(fresh, settings, all_grads[cut:], optimiser=again)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), whole.parameters(), strict=True))


def test_a_weight_without_a_gradient_stays_and_is_not_counted():
    model = net()
    optimiser = make_optimiser(model, SETTINGS)
    before = model[1].weight.detach().clone()
    for _ in range(6):
        model[0].weight.grad = torch.ones_like(model[0].weight)
        take_step(optimiser, rate=0.1, seed=0)
    assert torch.equal(model[1].weight, before)
    assert set(optimiser.state) == {model[0].weight}


def test_what_says_nothing_is_an_error():
    for every, share in ((0, 0.5), (5, 0.0), (5, 1.5)):
        with pytest.raises(UserError, match="look-ahead goes a share of"):
            look_ahead(torch.optim.SGD(net().parameters()), every=every, share=share)
