"""Wukong's token reduction, against plain loops and by what its paper's code promises."""

import math

import pytest
import torch

import oracles
from unicl.errors import UserError
from unicl.space import Parts
from unicl.towers.parts import ImageParts, PartsHead
from unicl.towers.reduce import GROUPS, Reducer


def reducer(width=16, parts=3):
    torch.manual_seed(0)
    made = Reducer(width=width, parts=parts).double()
    with torch.no_grad():
        made.norm.weight.uniform_(0.5, 1.5)
        made.norm.bias.normal_()
    return made


def values(rows=2, places=7, width=16):
    return torch.randn(rows, places, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 1


def test_means_and_weights_are_those_of_plain_loops():
    made, given = reducer(), values()
    found, weights = made(given), made.attention(given)
    for row in range(2):
        means, wanted = oracles.token_reduction(
            given[row].tolist(),
            gain=made.norm.weight.tolist(),
            shift=made.norm.bias.tolist(),
            first=made.weigh[0].weight[..., 0].tolist(),
            second=made.weigh[1].weight[..., 0].tolist(),
            change=made.change.weight[..., 0].tolist(),
            groups=GROUPS,
        )
        torch.testing.assert_close(found[row], torch.tensor(means, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(weights[row], torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_it_is_the_same_as_two_stacks_of_pictures_convolutions():
    made, given = reducer(), values(places=6)
    picture = given.view(2, 2, 3, 16)
    maps = made.norm(picture).permute(0, 3, 1, 2)
    for layer in made.weigh:
        groups = GROUPS if layer.groups > 1 else 1
        maps = torch.nn.functional.conv2d(maps, layer.weight[..., None], groups=groups)
    changed = torch.nn.functional.conv2d(picture.permute(0, 3, 1, 2), made.change.weight[..., None], groups=GROUPS)
    wanted = torch.einsum("nkp,ndp->nkd", maps.flatten(2).softmax(-1), changed.flatten(2))
    torch.testing.assert_close(made(given), wanted, rtol=1e-12, atol=1e-12)


def test_weights_sum_to_one_over_places_and_there_are_as_many_parts_as_asked():
    made, given = reducer(parts=5), values(places=9)
    assert made(given).shape == (2, 5, 16)
    torch.testing.assert_close(made.attention(given).sum(-1), torch.ones(2, 5, dtype=torch.float64))


def test_equal_places_give_equal_parts():
    given = values(places=1).expand(2, 8, 16)
    found = reducer()(given)
    torch.testing.assert_close(found, found[:, :1].expand_as(found))


def test_the_order_of_places_does_not_matter():
    made, given = reducer(), values()
    torch.testing.assert_close(made(given.flip(1)), made(given))


def test_gradients_reach_every_matrix_and_the_parts():
    made, given = reducer(), values().requires_grad_()
    made(given).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())
    assert given.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: made(x), (values(rows=1, places=3).requires_grad_(),))


def test_no_matrix_has_a_bias_and_all_start_by_the_number_of_their_outputs():
    torch.manual_seed(0)
    made = Reducer(width=256, parts=24)
    assert sorted(made.state_dict()) == [
        *("change.weight", "norm.bias", "norm.weight", "weigh.0.weight", "weigh.1.weight"),
    ]
    for layer, outputs in ((made.weigh[0], 256), (made.weigh[1], 24), (made.change, 256)):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / outputs), rel=0.05)


def test_parts_are_projected_then_reduced_then_brought_to_unit_length():
    head = torch.nn.Linear(10, 16, bias=False).double()
    made = PartsHead(ImageParts(reduced=4), features=10, width=16).double()
    states = Parts(values=values(width=10), mask=torch.ones(2, 7, dtype=torch.bool))
    found = made(states, head=head)
    wanted = torch.nn.functional.normalize(made.reducer(head(states.values)), dim=-1)
    torch.testing.assert_close(found.values, wanted)
    assert found.mask.shape == (2, 4)
    assert found.mask.all()


def test_a_reducer_in_half_precision_gives_parts_in_full():
    head = torch.nn.Linear(10, 16).bfloat16()
    made = PartsHead(ImageParts(reduced=4), features=10, width=16).bfloat16()
    found = made(Parts(values=values(width=10).bfloat16(), mask=torch.ones(2, 7, dtype=torch.bool)), head=head)
    assert found.values.dtype == torch.float32


def test_a_width_that_cannot_be_cut_into_groups_is_refused():
    with pytest.raises(UserError, match="20 dimensions cannot be cut so; take a width that is a multiple of 8"):
        PartsHead(ImageParts(reduced=4), features=10, width=20)
