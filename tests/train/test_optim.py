import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.multiprocessing import spawn

from clip_work import clip_work, loss, net, states
from rank_work import free_port
from unicl.errors import UserError
from unicl.towers.image import ImageSettings, ImageTower
from unicl.train.lamb import Lamb
from unicl.train.lowbit import halve_weights
from unicl.train.optim import (
    Average,
    OptimSettings,
    adamw,
    clip,
    learning_rate,
    make_optimiser,
    parameter_groups,
    take_step,
)


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


def test_tables_of_words_and_places_decay_like_matrices_or_not_at_all():
    holder = nn.ModuleDict({"image": ImageTower(ImageSettings(name="test_vit", size=32), width=8)})
    holder["text"] = nn.Embedding(5, 4)
    image = holder["image"].backbone
    tables = {id(p) for p in (image.pos_embed, image.cls_token, holder["text"].weight)}
    for decays in (True, False):
        first, _ = parameter_groups(holder, weight_decay=0.1, decay_embeddings=decays)
        held = {id(p) for p in first["params"]}
        assert tables & held == (tables if decays else set())
        assert id(image.blocks[0].mlp.fc1.weight) in held


def test_each_method_is_its_optimiser_and_adam_takes_decay_for_a_gradient():
    net = model()
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "lamb": Lamb}
    for method, kind in kinds.items():
        assert type(make_optimiser(net, OptimSettings(method=method))) is kind
    weight = nn.Linear(1, 1, bias=False)
    nn.init.ones_(weight.weight)
    weight.weight.grad = torch.zeros(1, 1)
    take_step(make_optimiser(weight, OptimSettings(method="adam", weight_decay=0.1)), rate=0.01, seed=0)
    assert math.isclose(float(weight.weight), 0.99, rel_tol=1e-5)


def test_towers_apart_have_rates_of_their_own():
    holder = nn.ModuleDict({"image": nn.Linear(2, 2), "text": nn.Linear(2, 2), "objective": nn.Linear(2, 2)})
    optimiser = make_optimiser(holder, OptimSettings(), apart=True)
    assert {group["tower"] for group in optimiser.param_groups} == set(holder)
    take_step(optimiser, rate=0.5, seed=0, factors={"image": 0.1, "text": 0.0})
    rates = {group["tower"]: group["lr"] for group in optimiser.param_groups}
    assert rates == {"image": 0.05, "text": 0.0, "objective": 0.5}
    whole = make_optimiser(holder, OptimSettings())
    assert len(whole.param_groups) == 2


@pytest.mark.parametrize("method", ["lamb", "adam"])
def test_states_in_fewer_bits_are_for_adamw(method):
    with pytest.raises(UserError, match=r"fp32 only.*optim\.method=adamw"):
        make_optimiser(model(), OptimSettings(method=method, states="bf16"))


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


def test_without_a_bound_no_gradient_is_written_to():
    net = model()
    net(torch.ones(1, 4)).sum().backward()
    versions = [p.grad._version for p in net.parameters()]
    clip(net.parameters(), norm=None)
    assert [p.grad._version for p in net.parameters()] == versions


def test_the_norm_is_that_of_all_gradients_in_all_their_types():
    net = model()
    net.register_parameter("halved", nn.Parameter(torch.ones(3, 3, dtype=torch.bfloat16)))
    for p in net.parameters():
        p.grad = torch.full_like(p, 0.5)
    count = sum(p.numel() for p in net.parameters())
    assert math.isclose(float(clip(net.parameters(), norm=1.0)), 0.5 * count**0.5, rel_tol=1e-3)
    assert math.isclose(float(clip(net.parameters(), norm=None)), 1.0, rel_tol=1e-2)


def test_a_model_without_gradients_has_norm_zero():
    assert float(clip(model().parameters(), norm=1.0)) == 0


def test_a_gradient_that_is_not_finite_shows_in_the_norm():
    net = model()
    net(torch.full((1, 4), math.inf)).sum().backward()
    assert not math.isfinite(float(clip(net.parameters(), norm=1.0)))


def test_a_step_takes_the_rate_that_it_is_given():
    net = model()
    optimiser = adamw(net, OptimSettings(lr=1.0, weight_decay=0.0))
    net(torch.ones(1, 4)).sum().backward()
    before = net[2].weight.detach().clone()
    take_step(optimiser, rate=1e-3, seed=0)
    moved = (net[2].weight.detach() - before).abs().max()
    assert math.isclose(float(moved), 1e-3, rel_tol=1e-2)


def test_states_that_were_saved_in_one_layout_fit_weights_in_another():
    """A fused step reads memory as it lies: without care, it would mix up the numbers of a weight."""

    def convolution(layout):
        torch.manual_seed(0)
        layer = nn.Conv2d(4, 8, 3).to(memory_format=layout)
        return layer, adamw(layer, OptimSettings(lr=0.1))

    def train(layer, optimiser, steps):
        for step in steps:
            optimiser.zero_grad(set_to_none=True)
            images = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(step))
            layer(images).square().sum().backward()
            take_step(optimiser, rate=0.1, seed=step)

    straight, optimiser = convolution(torch.contiguous_format)
    train(straight, optimiser, range(2))
    other, resumed = convolution(torch.channels_last)
    other.load_state_dict(straight.state_dict())
    resumed.load_state_dict(deepcopy(optimiser.state_dict()))
    train(straight, optimiser, range(2, 5))
    train(other, resumed, range(2, 5))
    torch.testing.assert_close(other.weight, straight.weight)
    assert resumed.state[other.weight]["exp_avg"].stride() == other.weight.stride()


def test_the_average_of_halved_weights_is_exact_and_survives_being_swapped():
    net = nn.Linear(64, 64, bias=False)
    halve_weights(net)
    average = Average(net, decay=0.5)
    with torch.no_grad():
        net.weight.add_(1.0)
    average.update(net, step=10**6)
    wanted, own = average.state["weight"].clone(), net.weight.detach().clone()
    assert wanted.dtype == torch.float32
    for _ in range(3):
        average.swap(net)
        assert torch.equal(net.weight, wanted.bfloat16())
        average.swap(net)
        assert torch.equal(net.weight, own)
        assert torch.equal(average.state["weight"], wanted)


def test_the_average_can_be_saved_whatever_the_layout_of_the_weights():
    layer = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    assert all(value.is_contiguous() for value in Average(layer, decay=0.9).state.values())


def in_shards(folder, *, kinds):
    spawn(clip_work, args=(str(folder), free_port(), kinds), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
def test_gradients_in_shards_have_the_norm_of_the_whole_and_are_clipped_alike(tmp_path):
    alone = net()
    loss(alone).backward()
    norm = torch.stack([p.grad.square().sum() for p in alone.parameters()]).sum().sqrt()
    for found in in_shards(tmp_path, kinds=()):
        torch.testing.assert_close(found["norm"], norm)
        torch.testing.assert_close(found["after"], torch.tensor(0.5))
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(found["grads"][name], parameter.grad * 0.5 / norm, msg=name)


@pytest.mark.slow
def test_states_in_fewer_bits_work_in_shards(tmp_path):
    first, second = (found["states"] for found in in_shards(tmp_path, kinds=("bf16", "int8")))
    for kind in ("bf16", "int8"):
        for name, value in states(net(), kind).items():
            torch.testing.assert_close(first[kind][name], value, atol=5e-3, rtol=1e-2, msg=f"{kind} {name}")
            assert torch.equal(first[kind][name], second[kind][name])


def test_words_in_names_say_what_does_not_decay_in_place_of_dimensions():
    named = nn.ModuleDict({"norm": nn.LayerNorm(3), "LayerNorm": nn.LayerNorm(3), "dense": nn.Linear(3, 2)})
    decaying, others = parameter_groups(named, weight_decay=0.1, undecayed=("norm", "bias"))
    # As in cn_clip, BERT's gains decay since "LayerNorm" has no "norm" in it.
    assert [id(p) for p in decaying["params"]] == [id(named["LayerNorm"].weight), id(named["dense"].weight)]
    assert (decaying["decays"], others["decays"]) == (True, False)
    everything, nothing = parameter_groups(named, weight_decay=0.1, undecayed=())
    assert (len(everything["params"]), len(nothing["params"])) == (6, 0)


def test_a_linear_decline_falls_by_equal_steps():
    settings = OptimSettings(lr=1.0, warmup=2, decline="linear", final=0.2)
    rates = [learning_rate(step, steps=10, settings=settings) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert [round(a - b, 12) for a, b in pairwise(rates[2:])] == [0.1] * 8


def test_lamb_is_the_variant_that_was_asked_for():
    assert make_optimiser(model(), OptimSettings(method="lamb", lamb="corrected")).variant == "corrected"
