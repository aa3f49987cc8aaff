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


GRADS = torch.tensor([[0.3, -0.1, 0.2], [-0.2, 0.4, 0.1]], dtype=torch.float64)
START = torch.tensor([0.5, -1.0, 12.0], dtype=torch.float64)


def corrected(start, grads, *, decay, adapts):
    """TensorFlow Addons' LAMB, entry by entry: Adam's corrected step, decay, then the ratio of norms."""
    weight, mean, square = list(start), [0.0] * len(start), [0.0] * len(start)
    for number, grad in enumerate(grads, start=1):
        step = []
        for k, g in enumerate(grad):
            mean[k] = BETAS[0] * mean[k] + (1 - BETAS[0]) * g
            square[k] = BETAS[1] * square[k] + (1 - BETAS[1]) * g * g
            first, second = mean[k] / (1 - BETAS[0] ** number), square[k] / (1 - BETAS[1] ** number)
            step.append(first / (math.sqrt(second) + EPS) + decay * weight[k])
        long, wide = (math.sqrt(sum(x * x for x in each)) for each in (weight, step))
        ratio = long / wide if adapts and long and wide else 1.0
        weight = [w - RATE * ratio * s for w, s in zip(weight, step, strict=True)]
    return weight


def moved(variant, *, decays, decay):
    weight = nn.Parameter(START.clone())
    group = {"params": [weight], "weight_decay": decay if decays else 0.0, "decays": decays}
    optimiser = Lamb([group], lr=RATE, betas=BETAS, eps=EPS, variant=variant)
    for grad in GRADS:
        weight.grad = grad.clone()
        optimiser.step()
    return weight.tolist()


@pytest.mark.parametrize(
    ("variant", "decays", "decay", "adapts"),
    [
        ("corrected", True, DECAY, True),
        ("corrected", True, 0.0, True),
        ("corrected", False, DECAY, False),
        ("nvidia", True, DECAY, True),
        ("nvidia", True, 0.0, False),
        ("nvidia", False, DECAY, False),
    ],
)
def test_the_corrected_variants_are_plain_loops_and_leave_out_of_the_ratio_what_they_say(
    variant, decays, decay, adapts
):
    wanted = corrected(START.tolist(), GRADS.tolist(), decay=decay if decays else 0.0, adapts=adapts)
    torch.testing.assert_close(moved(variant, decays=decays, decay=decay), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decay", [DECAY, 0.0])
def test_nvidias_is_timms_without_its_hidden_clip(decay):
    from timm.optim import Lamb as Theirs

    weight = nn.Parameter(START.clone())
    optimiser = Theirs([weight], lr=RATE, betas=BETAS, eps=EPS, weight_decay=decay, max_grad_norm=None)
    for grad in GRADS:
        weight.grad = grad.clone()
        optimiser.step()
    torch.testing.assert_close(moved("nvidia", decays=True, decay=decay), weight.tolist(), rtol=1e-9, atol=1e-9)


def test_one_step_of_each_variant_by_hand():
    """Golden: a weight of 3 and 4 under a gradient of 1 and 1."""
    ends = {}
    for variant in ("uncorrected", "corrected", "nvidia"):
        weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        optimiser = Lamb([{"params": [weight]}], lr=0.1, betas=(0.9, 0.999), eps=1e-300, variant=variant)
        weight.grad = torch.ones(2, dtype=torch.float64)
        optimiser.step()
        ends[variant] = weight.tolist()
    # Adapted, it moves by a tenth of its length of 5, whatever the step; else by a tenth of Adam's step of 1 and 1.
    far = 0.5 * 0.5**0.5
    torch.testing.assert_close(ends["uncorrected"], [3 - far, 4 - far])
    torch.testing.assert_close(ends["corrected"], [3 - far, 4 - far])
    torch.testing.assert_close(ends["nvidia"], [2.9, 3.9])


def test_a_temperature_moves_by_the_rate_whatever_its_gradient():
    for gradient in (1e-3, 1e3):
        weight = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        optimiser = Lamb([{"params": [weight]}], lr=0.01, eps=1e-12, variant="corrected")
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimiser.step()
        assert weight.item() == pytest.approx(0.5 * 0.99)


def test_a_corrected_optimiser_counts_on_where_it_was_saved():
    def steps(weight, optimiser, numbers):
        for number in numbers:
            weight.grad = torch.randn(6, 2, generator=torch.Generator().manual_seed(number))
            optimiser.step()

    def made(weight):
        parameter = nn.Parameter(weight)
        return parameter, Lamb([{"params": [parameter]}], lr=RATE, variant="corrected")

    straight, optimiser = made(torch.ones(6, 2))
    steps(straight, optimiser, range(3))
    resumed, other = made(straight.detach().clone())
    other.load_state_dict(deepcopy(optimiser.state_dict()))
    steps(straight, optimiser, range(3, 6))
    steps(resumed, other, range(3, 6))
    assert torch.equal(straight, resumed)
