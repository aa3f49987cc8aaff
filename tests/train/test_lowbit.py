import io
import sys

import pytest
import torch
from torch import nn

from unicl.errors import UserError
from unicl.train.lowbit import halve_weights
from unicl.train.optim import OptimSettings, adamw, take_step

KINDS = [(s, w) for s in ("fp32", "bf16", "int8") for w in ("fp32", "bf16")]


def net(weights="fp32"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 96), nn.Linear(96, 256), nn.LayerNorm(256), nn.Linear(256, 8))
    if weights == "bf16":
        halve_weights(model)
    return model


def made(states, weights):
    model = net(weights)
    return model, adamw(model, OptimSettings(lr=1e-2, weight_decay=0.1, states=states, weights=weights))


def train(model, optimiser, steps):
    """Learn which eighth of the words a word is in; returns the losses."""
    losses = []
    for step in steps:
        torch.manual_seed(step)
        words = torch.randint(0, 50, (64,))
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model[1].weight.dtype == torch.bfloat16):
            scores = model(words).float()
        loss = nn.functional.cross_entropy(scores, words % 8)
        loss.backward()
        take_step(optimiser, rate=1e-2, seed=step)
        losses.append(float(loss.detach()))
    return losses


def bytes_of(tensor):
    inner = [getattr(tensor, name) for name in getattr(tensor, "tensor_attrs", ())]
    return sum(t.nbytes for t in inner) if inner else tensor.nbytes


@pytest.mark.parametrize(("states", "weights"), KINDS)
def test_every_kind_learns_nearly_as_adamw_does(states, weights):
    plain = train(*made("fp32", "fp32"), range(30))
    found = train(*made(states, weights), range(30))
    assert found[0] == pytest.approx(plain[0], rel=0.02)
    assert found[-1] < 0.3 * found[0]
    assert found[-1] == pytest.approx(plain[-1], abs=0.15)


@pytest.mark.parametrize(("states", "weights"), KINDS)
def test_a_saved_and_loaded_optimiser_goes_on_bit_for_bit(states, weights):
    straight, optimiser = made(states, weights)
    train(straight, optimiser, range(3))
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimiser": optimiser.state_dict()}, file)
    train(straight, optimiser, range(3, 6))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, again = made(states, weights)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimiser"])
    train(resumed, again, range(3, 6))
    for (name, value), other in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize(
    ("states", "weights", "wanted"), [("bf16", "fp32", 4), ("int8", "fp32", 2), ("bf16", "bf16", 4)]
)
def test_the_states_of_a_large_matrix_take_so_many_bytes(states, weights, wanted):
    model, optimiser = made(states, weights)
    train(model, optimiser, range(1))
    large = model[1].weight
    held = sum(bytes_of(optimiser.state[large][moment]) for moment in ("exp_avg", "exp_avg_sq"))
    assert wanted <= held / large.numel() < wanted + 0.15
    assert large.element_size() == (2 if weights == "bf16" else 4)


def test_gains_biases_and_frozen_weights_are_not_halved():
    model = net()
    model[0].requires_grad_(False)
    halve_weights(model)
    halved = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert halved == {"1.weight", "3.weight"}


def test_drawn_rounding_learns_steps_that_plain_rounding_would_lose():
    """Each step is a thousandth of the distance between two neighbouring bfloat16 numbers."""
    weight = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    holder = nn.Module()
    holder.weight = weight
    optimiser = adamw(holder, OptimSettings(lr=1.0, weight_decay=0.0, states="bf16", weights="bf16"))
    for step in range(50):
        weight.grad = torch.ones_like(weight)
        take_step(optimiser, rate=1e-4, seed=step)
    assert weight.float().mean().item() == pytest.approx(1 - 50e-4, abs=5e-4)


def test_rounding_is_drawn_from_the_seed_of_the_step_alone():
    found = []
    for noise in (0, 7):
        model, optimiser = made("bf16", "bf16")
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        torch.rand(noise)
        take_step(optimiser, rate=1e-3, seed=5)
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_without_torchao_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(UserError, match=r"pip install 'unicl\[lowbit\]'"):
        made("int8", "fp32")
