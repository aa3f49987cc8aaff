import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from unicl.train.profiling.flops import counter, peak


def counted(module, *inputs):
    with counter() as flops:
        module(*inputs).sum().backward()
    return flops.get_total_flops()


def test_a_linear_layer_counts_three_products_where_its_input_learns_and_two_where_not():
    layer, rows = nn.Linear(5, 7), torch.ones(3, 5)
    assert counted(layer, rows) == 2 * 2 * 3 * 5 * 7
    assert counted(layer, rows.requires_grad_()) == 3 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_backward_pass_of_a_convolution_counts_twice_the_forward_at_any_number_of_groups(groups):
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    images = torch.ones(2, 8, 10, 10, requires_grad=True)
    forward = 2 * (2 * 8 * 10 * 10) * (8 // groups * 9)
    assert counted(layer, images) == 3 * forward


def test_attention_is_counted():
    states = torch.ones(2, 4, 16, 8)
    with counter() as flops:
        scaled_dot_product_attention(states, states, states)
    assert flops.get_total_flops() == 2 * (2 * 2 * 4 * 16 * 16 * 8)


def test_counted_gradients_are_the_same_but_for_rounding():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    images = torch.randn(2, 3, 8, 8)
    net(images).square().sum().backward()
    plain = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with counter():
        net(images).square().sum().backward()
    for parameter, wanted in zip(net.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_of_a_cpu_is_measured(precision):
    found = peak(torch.device("cpu"), precision)
    assert found.flops > 1e8
    assert "measured" in found.source
    assert precision in found.source


@pytest.mark.gpu
def test_the_peak_of_a_known_gpu_is_in_a_table_and_at_least_what_a_product_reaches():
    from unicl.train.profiling.flops import _measured

    device = torch.device("cuda")
    found = peak(device, "bf16")
    assert "data sheet" in found.source
    assert 0.4 * found.flops < _measured(device, "bf16") <= 1.05 * found.flops
