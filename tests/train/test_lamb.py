import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from forks import run_forks
from lamb_work import net, shard_work, trained
from rank_work import free_port
from unicl.train.lamb import Lamb

RATE, BETAS, EPS, DECAY = 0.05, (0.9, 0.999), 1e-4, 0.03


def looped(weight, grads, *, decay):
    """The weights after each gradient, entry by entry, from the paper's formulas without correction."""
    weight = list(weight)
    mean, square = [0.0] * len(weight), [0.0] * len(weight)
    for grad in grads:
        step = []
        for k, g in enumerate(grad):
            mean[k] = BETAS[0] * mean[k] + (1 - BETAS[0]) * g
            square[k] = BETAS[1] * square[k] + (1 - BETAS[1]) * g * g
            step.append(mean[k] / (math.sqrt(square[k]) + EPS) + decay * weight[k])
        long = min(math.sqrt(sum(w * w for w in weight)), 10.0)
        wide = math.sqrt(sum(s * s for s in step))
        ratio = 1.0 if long == 0 or wide == 0 else long / wide
        weight = [w - RATE * ratio * s for w, s in zip(weight, step, strict=True)]
    return weight


def lamb(*weights, decay=DECAY):
    parameters = [nn.Parameter(w) for w in weights]
    return parameters, Lamb([{"params": parameters, "weight_decay": decay}], lr=RATE, betas=BETAS, eps=EPS)


@pytest.mark.parametrize("size", [0.0, 0.3, 40.0])
def test_steps_are_those_of_plain_loops_also_for_weights_of_norm_zero_and_above_ten(size):
    torch.manual_seed(0)
    start, grads = size * torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 3, 5, dtype=torch.float64)
    for decay in (0.0, DECAY):
        [weight], optimiser = lamb(start.clone(), decay=decay)
        for grad in grads:
            weight.grad = grad.clone()
            optimiser.step()
        wanted = looped(start.flatten().tolist(), grads.flatten(1).tolist(), decay=decay)
        torch.testing.assert_close(weight.flatten().tolist(), wanted, rtol=1e-13, atol=1e-14)


def test_one_step_by_hand():
    [weight], optimiser = lamb(torch.tensor([3.0, 4.0], dtype=torch.float64), decay=0.0)
    weight.grad = torch.tensor([1.0, 0.0], dtype=torch.float64)
    optimiser.step()
    # The step has one entry, whatever its size, so the weight moves by its norm of 5 times the rate.
    torch.testing.assert_close(weight.tolist(), [3.0 - 5 * RATE, 4.0])


def test_weights_of_many_shapes_each_have_a_ratio_of_their_own():
    torch.manual_seed(1)
    starts = [torch.randn(shape, dtype=torch.float64) for shape in ((4, 3), (7,), (), (2, 3, 2, 2))]
    grads = [torch.randn_like(w) for w in starts]
    weights, optimiser = lamb(*(w.clone() for w in starts))
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad
    optimiser.step()
    for weight, begun, grad in zip(weights, starts, grads, strict=True):
        wanted = looped(begun.flatten().tolist(), [grad.flatten().tolist()], decay=DECAY)
        torch.testing.assert_close(weight.flatten().tolist(), wanted, rtol=1e-13, atol=1e-14)


def test_a_weight_without_a_gradient_stays_and_no_rate_moves_none():
    (still, moved), optimiser = lamb(torch.ones(3), torch.ones(3))
    moved.grad = torch.ones(3)
    optimiser.step()
    assert torch.equal(still, torch.ones(3))
    before = moved.detach().clone()
    optimiser.param_groups[0]["lr"] = 0.0
    optimiser.step()
    assert torch.equal(moved, before)


def test_a_saved_optimiser_goes_on_bit_for_bit():
    def steps(weight, optimiser, numbers):
        for number in numbers:
            weight.grad = torch.randn(6, 2, generator=torch.Generator().manual_seed(number))
            optimiser.step()

    [straight], optimiser = lamb(torch.ones(6, 2))
    steps(straight, optimiser, range(3))
    [resumed], other = lamb(straight.detach().clone())
    other.load_state_dict(deepcopy(optimiser.state_dict()))
    steps(straight, optimiser, range(3, 6))
    steps(resumed, other, range(3, 6))
    assert torch.equal(straight, resumed)


def test_the_layout_of_a_weight_does_not_matter():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(2)
        [weight], optimiser = lamb(torch.randn(4, 3, 5, 5).contiguous(memory_format=layout))
        weight.grad = torch.randn(4, 3, 5, 5)
        optimiser.step()
        results.append(weight.detach())
    torch.testing.assert_close(*results)


def test_norms_are_those_of_whole_weights_where_each_process_holds_a_part(tmp_path):
    run_forks(shard_work, str(tmp_path), free_port(), processes=2)
    alone = trained(net())
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, weight in alone.items():
        torch.testing.assert_close(first[name], weight, rtol=1e-12, atol=1e-14, msg=name)
        assert torch.equal(first[name], second[name])
