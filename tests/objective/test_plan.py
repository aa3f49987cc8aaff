import numpy as np
import pytest
import torch

from pair_cases import KINDS, target, vectors
from unicl.objective.peers import ALONE
from unicl.objective.plan import Plan, Pull, Tiling, pull_columns, pull_rows


def plan(kind, rng, *, itself=False):
    images, texts = 7, 7 if kind == "paired" or itself else 5
    wanted = target(kind, rng, images=images, texts=texts)
    draw = [torch.tensor(rng.uniform(0.1, 1, n)) for n in (images, texts, images, texts, images, texts)]
    pull = (
        Pull(rows=draw[0]) if itself else Pull(rows=draw[0], columns=draw[1], row_floor=draw[2], column_floor=draw[3])
    )
    return wanted, Plan(
        target=wanted.near(slice(0, images)),
        own=slice(0, images),
        own_columns=slice(0, texts),
        column_sizes=(texts,),
        row_counts=torch.ones(images).double() if itself else draw[4],
        column_counts=torch.ones(texts).double() if itself else draw[5],
        pull=pull,
        row_weights=draw[0],
        column_weights=None,
        peers=ALONE,
        tiling=Tiling(),
        learns=True,
        itself=itself,
    )


def pairs(wanted, made):
    """How hard each pair is pulled, pair by pair, as the docstring of `Pull` says."""
    pull, rows, columns = made.pull, made.row_counts, made.column_counts
    table = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    by_row, by_text = wanted.dense(by="images"), wanted.dense(by="texts")
    zero = torch.zeros(max(len(rows), len(columns))).double()
    row_floor, column_floor, by_column = (
        zero if t is None else t for t in (pull.row_floor, pull.column_floor, pull.columns)
    )
    for i in range(len(rows)):
        for j in range(len(columns)):
            by_target = by_row[i, j] * pull.rows[i] * columns[j] + by_text[i, j] * rows[i] * by_column[j]
            table[i, j] = by_target + row_floor[i] * columns[j] + rows[i] * column_floor[j]
    return table.fill_diagonal_(0) if made.itself else table


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [1, 2])
def test_sums_over_groups_equal_sums_over_pairs(kind, blocks):
    rng = np.random.default_rng(0)
    wanted, made = plan(kind, rng)
    u, v = vectors(rng, 7), vectors(rng, len(made.column_counts))
    places = [slice(0, len(v))] if blocks == 1 else [slice(0, 2), slice(2, len(v))]
    rows = torch.zeros_like(u)
    for place in places:
        pull_rows(rows, made, columns=v[place], place=place)
    table = pairs(wanted, made)
    assert torch.allclose(rows, table @ v, atol=1e-13)
    columns = torch.zeros_like(v)
    for place in places:
        pull_columns(columns[place], made, rows=u, place=place)
    assert torch.allclose(columns, -table.T @ u, atol=1e-13)


def test_a_row_may_be_kept_from_itself():
    rng = np.random.default_rng(1)
    wanted, made = plan("one key", rng, itself=True)
    u = vectors(rng, 7)
    rows = torch.zeros_like(u)
    pull_rows(rows, made, columns=u, place=slice(0, 7))
    table = pairs(wanted, made)
    assert torch.allclose(rows, table @ u, atol=1e-13)
    columns = torch.zeros_like(u)
    pull_columns(columns, made, rows=u, place=slice(0, 7))
    assert torch.allclose(columns, -table.T @ u, atol=1e-13)
