import pytest
import torch
from torch import nn

from unicl.train.optim import OptimSettings, adamw
from unicl.train.ranks import Ranks
from unicl.train.state import load_state, load_weights, save_state, whole_state


def trained(*, width=3, states="fp32"):
    torch.manual_seed(width)
    net = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 2))
    net[2].bias.requires_grad_(False)
    optimiser = adamw(net, OptimSettings(states=states))
    net(torch.ones(1, 4)).square().sum().backward()
    optimiser.step()
    return net, optimiser


def moments(net, optimiser):
    return [value for p in net.parameters() for value in optimiser.state.get(p, {}).values()]


def test_states_and_weights_come_back_bit_for_bit(tmp_path):
    net, optimiser = trained()
    save_state(tmp_path / "state", net, optimiser, weights=True, ranks=Ranks())
    other, fresh = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)), None
    other[2].bias.requires_grad_(False)
    fresh = adamw(other, OptimSettings())
    load_state(tmp_path / "state", other, fresh, weights=True, ranks=Ranks())
    assert all(torch.equal(a, b) for a, b in zip(moments(net, optimiser), moments(other, fresh), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert all(p.grad is None for p in other.parameters())


def test_a_state_of_another_model_is_refused_by_name(tmp_path):
    save_state(tmp_path / "state", *trained(), weights=False, ranks=Ranks())
    with pytest.raises((ValueError, RuntimeError)):
        load_state(tmp_path / "state", *trained(width=5), weights=False, ranks=Ranks())
    with pytest.raises(ValueError, match="differ in model.0.bias"):
        load_state(tmp_path / "state", *trained(), weights=True, ranks=Ranks())


def test_a_whole_state_is_kept_where_it_is_asked_for():
    net, _ = trained()
    assert whole_state(net.state_dict(), keep=False) == {}
    other, _ = trained(width=3)
    nn.init.zeros_(other[0].weight)
    load_weights(other, whole_state(net.state_dict(), keep=True))
    assert torch.equal(other[0].weight, net[0].weight)
    with pytest.raises(RuntimeError):
        load_weights(other, {"unknown": torch.zeros(1)})
