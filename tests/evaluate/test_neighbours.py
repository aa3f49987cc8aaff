import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from evaluate_oracles import elected, neighbours_of, units
from unicl.evaluate.neighbours import nearest, vote
from unicl.evaluate.zeroshot import Truth


def test_neighbours_are_those_of_sorting_the_bank():
    queries, bank = units(15, 12, seed=0), units(60, 12, seed=1)
    bank[40:] = bank[:20]
    queries[3] = bank[5]
    found = nearest(queries, bank, k=9)
    assert found.tolist() == [neighbours_of(query, bank, 9) for query in queries]


@pytest.mark.parametrize(("tile", "bank_tile"), [(1, 1), (4, 7), (512, 64)])
def test_tiles_change_no_neighbour(tile, bank_tile):
    queries, bank = units(30, 10, seed=0), units(200, 10, seed=1)
    bank[100:150] = bank[:50]
    queries[:20] = bank[110:130]
    assert torch.equal(nearest(queries, bank, k=20), nearest(queries, bank, k=20, tile=tile, bank_tile=bank_tile))


def test_more_neighbours_than_the_bank_has_are_all_of_it():
    found = nearest(units(2, 4, seed=0), units(3, 4, seed=1), k=20)
    assert [sorted(row) for row in found.tolist()] == [[0, 1, 2]] * 2


def test_a_bank_tile_too_wide_for_exact_places_is_refused():
    with pytest.raises(ValueError, match="1 to 4096 rows, not 4097"):
        nearest(units(2, 4, seed=0), units(3, 4, seed=1), k=1, bank_tile=4097)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_votes_are_those_of_counting(data):
    own = st.sets(st.integers(0, 4), min_size=1, max_size=3)
    truth = data.draw(st.lists(own, min_size=3, max_size=8))
    row = st.lists(st.integers(0, len(truth) - 1), min_size=3, max_size=3, unique=True)
    neighbours = data.draw(st.lists(row, min_size=1, max_size=6))
    found = vote(torch.tensor(neighbours), Truth.of(truth), classes=5, tile=2)
    assert found.tolist() == [elected(several, truth) for several in neighbours]


def test_a_tie_goes_to_the_nearest():
    truth = Truth.of(torch.tensor([3, 1, 1, 3, 2]))
    assert vote(torch.tensor([[0, 1, 2, 3, 4]]), truth, classes=4).tolist() == [3]
    assert vote(torch.tensor([[1, 0, 2, 3, 4]]), truth, classes=4).tolist() == [1]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_predictions_agree_with_scikit_learn_where_votes_do_not_tie(k):
    from sklearn.neighbors import KNeighborsClassifier

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (300,), generator=generator)
    centres = torch.randn(6, 20, generator=generator)
    bank = F.normalize(centres[labels] + 1.3 * torch.randn(300, 20, generator=generator), dim=-1)
    queries = F.normalize(centres.repeat(20, 1) + 1.3 * torch.randn(120, 20, generator=generator), dim=-1)
    found = vote(nearest(queries, bank, k=k), Truth.of(labels), classes=6)
    theirs = KNeighborsClassifier(k, metric="cosine").fit(bank.numpy(), labels.numpy())
    shares = torch.from_numpy(theirs.predict_proba(queries.numpy()))
    untied = (shares == shares.max(1, keepdim=True).values).sum(1) == 1
    assert int(untied.sum()) > 80
    assert found[untied].tolist() == theirs.predict(queries.numpy())[untied].tolist()
