import pytest
import torch
from torch import nn

from unicl.train.optim import OptimSettings, adamw
from unicl.train.ranks import Ranks
from unicl.train.state import keep_states, load_state, load_weights, read_weights, save_state, whole_state


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


def test_states_are_kept_of_what_still_learns_in_its_old_shape(tmp_path):
    net, optimiser = trained()
    save_state(tmp_path / "state", net, optimiser, weights=False, ranks=Ranks())
    other = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 5))
    other[0].weight.requires_grad_(False)
    fresh = adamw(other, OptimSettings())
    keep_states(tmp_path / "state", other, fresh, ranks=Ranks())
    kept = {name for name, p in other.named_parameters() if fresh.state.get(p)}
    # The bias of the last layer did not learn before, and its weight has another shape.
    assert kept == {"0.bias", "1.weight", "1.bias"}
    for name in kept:
        mine, theirs = optimiser.state[net.get_parameter(name)], fresh.state[other.get_parameter(name)]
        assert all(torch.equal(theirs[key], value) for key, value in mine.items())


def test_weights_that_go_on_learning_are_read_in_whole_if_they_are_there(tmp_path):
    net, optimiser = trained()
    for weights in (True, False):
        save_state(tmp_path / str(weights), net, optimiser, weights=weights, ranks=Ranks())
    found = read_weights(tmp_path / "True")
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in net.state_dict().items())
    assert read_weights(tmp_path / "False") == {}
