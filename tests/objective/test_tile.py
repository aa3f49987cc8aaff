import pytest
import torch

from unicl.objective.tile import Fused, _far_push, _far_sums, exponentials, log_sums, product, weighted

COUNTS = torch.tensor([1.0, 3.0, 0.5, 2.0, 1.0], dtype=torch.float64)


def scores(spread):
    return spread * torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spread", [1.0, 15.0, 300.0])
def test_sums_of_exponentials_are_the_same_for_near_and_far_scores(spread):
    made = scores(spread)
    tile = exponentials(made.clone(), bound=float(made.abs().max()), itself=None)
    assert (tile.middle is None) == (spread == 300)
    by_row, by_column = log_sums(tile, COUNTS[:4], COUNTS, both=True)
    assert torch.allclose(by_row, torch.logsumexp(made + COUNTS.log(), 1), rtol=1e-13)
    assert torch.allclose(by_column, torch.logsumexp(made + COUNTS[:4, None].log(), 0), rtol=1e-13)
    assert torch.equal(log_sums(tile, COUNTS[:4], COUNTS, both=False)[0], by_row)
    rows, columns = -made.logsumexp(1), -made.logsumexp(0)
    wanted = (made + rows[:, None]).exp() + (made + columns).exp()
    assert torch.allclose(weighted(tile, rows, columns, spare=torch.empty_like(made)), wanted, rtol=1e-12)


def test_places_that_are_left_out_add_nothing():
    for spread in (1.0, 300.0):
        made, places = scores(spread), (torch.arange(4), torch.arange(4))
        ones = torch.ones(4).double(), torch.ones(5).double()
        tile = exponentials(made.clone(), bound=float(made.abs().max()), itself=places)
        bare = made.clone()
        bare[places] = -torch.inf
        assert torch.allclose(log_sums(tile, *ones, both=False)[0], bare.logsumexp(1), rtol=1e-13)
        push = weighted(tile, -bare.logsumexp(1), None, spare=torch.empty_like(made))
        assert torch.allclose(push, bare.softmax(1), rtol=1e-12)


def test_products_of_bfloat16_are_exact_and_in_float32():
    left, right = torch.randn(3, 8).bfloat16(), torch.randn(8, 4).bfloat16()
    made = product(left, right, scale=2.0)
    assert made.dtype == torch.float32
    assert torch.allclose(made.double(), 2 * left.double() @ right.double(), rtol=1e-6)


@pytest.mark.slow
def test_fused_passes_give_the_numbers_of_the_plain_ones():
    made = scores(300.0).float()
    rows, columns = -made.logsumexp(1), -made.logsumexp(0)
    torch.testing.assert_close(Fused(_far_push)(made, rows, columns), _far_push(made, rows, columns))
    for own, wanted in zip(Fused(_far_sums)(made, rows, columns), _far_sums(made, rows, columns)):
        torch.testing.assert_close(own, wanted)


@pytest.mark.slow
def test_what_cannot_be_compiled_runs_as_it_is():
    def fails_once(values):
        if torch.compiler.is_compiling():
            raise RuntimeError("no compiler here")
        return values + 1

    assert Fused(fails_once)(torch.ones(1)).item() == 2
