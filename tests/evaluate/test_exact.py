import pytest
import torch

from evaluate_oracles import exact_cosine, units
from unicl.errors import UserError
from unicl.evaluate.exact import cosines, grid, require_finite, tiles


def test_cosines_of_the_grid_are_exact_fractions():
    left, right = units(5, 300, seed=0), units(4, 300, seed=1)
    found = cosines(grid(left), grid(right))
    for i in range(5):
        for j in range(4):
            assert float(found[i, j]) == float(exact_cosine(left[i], right[j]))


def test_the_order_of_adding_up_changes_nothing():
    left, right = units(6, 513, seed=2), units(7, 513, seed=3)
    order = torch.randperm(513, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cosines(grid(left), grid(right)), cosines(grid(left[:, order]), grid(right[:, order])))


def test_the_grid_is_as_fine_as_float32():
    left, right = units(50, 512, seed=4), units(50, 512, seed=5)
    true = left.double() @ right.double().T
    assert float((cosines(grid(left), grid(right)) - true).abs().max()) < 1e-7


def test_tiles_cover_everything_once():
    assert [list(range(10))[part] for part in tiles(10, tile=4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(tiles(0, tile=4)) == []


def test_vectors_that_are_not_finite_are_refused_with_their_number():
    vectors = torch.zeros(3, 4)
    vectors[1, 2] = torch.nan
    with pytest.raises(UserError, match="1 of 3 image embeddings are not finite"):
        require_finite(vectors, what="image embeddings")
    assert require_finite(torch.zeros(3, 4), what="image embeddings").shape == (3, 4)
