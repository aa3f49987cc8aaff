import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate_oracles import rank_in_gallery, units
from unicl.evaluate.ranking import paired, rank_among, sharing


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), max_size=20), st.integers(1, 40))
def test_ranks_of_items_in_groups_are_those_of_plain_loops(entries, cells):
    vectors = units(9, 6, seed=0)
    vectors[5] = vectors[2]
    rows, groups = torch.tensor(entries, dtype=torch.int64).view(-1, 2).T
    found = rank_among(vectors, vectors, right=sharing(rows, groups, size=9), left_out_Q=torch.arange(9), cells=cells)
    shared = [{b for b in range(9) if any((a, g) in entries and (b, g) in entries for g in range(4))} for a in range(9)]
    assert found.tolist() == [rank_in_gallery(vectors[a], vectors, shared[a], a) for a in range(9)]


def test_a_query_that_stands_in_the_gallery_does_not_find_itself():
    vectors = torch.eye(4)
    relation = sharing(torch.arange(4), torch.tensor([0, 0, 1, 2]), size=4)
    found = rank_among(vectors, vectors, right=relation, left_out_Q=torch.arange(4))
    assert found.tolist() == [3, 3, 0, 0], "orthogonal to all others, and those that are alone have no right answer"


def test_ranks_of_listed_pairs_leave_out_the_place_that_each_query_names():
    queries, answers = units(5, 8, seed=1), units(7, 8, seed=2)
    right = [{0, 3}, {1}, {6}, {2, 4}, {5}]
    entries = torch.tensor([(q, a) for q, several in enumerate(right) for a in sorted(several)]).T
    out = [3, 0, 0, 2, 5]
    relation = paired(*entries, queries=5, answers=7)
    found = rank_among(queries, answers, right=relation, left_out_Q=torch.tensor(out))
    assert found.tolist() == [rank_in_gallery(queries[q], answers, right[q], out[q]) for q in range(5)]
    assert found[4] == 0


@pytest.mark.parametrize("cells", [1, 50, 10**6])
def test_ranks_do_not_depend_on_the_size_of_the_tiles(cells):
    vectors = units(60, 16, seed=3)
    relation = sharing(torch.arange(60), torch.arange(60) % 11, size=60)
    whole = rank_among(vectors, vectors, right=relation, left_out_Q=torch.arange(60))
    found = rank_among(vectors, vectors, right=relation, left_out_Q=torch.arange(60), cells=cells)
    assert torch.equal(found, whole)
