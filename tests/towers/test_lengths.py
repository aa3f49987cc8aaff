"""Texts of like length are read together."""

import pytest
import torch

from unicl.towers.lengths import GROUPS, LEAST_ROWS, WORTH, length_groups


def mask_of(lengths, longest=None):
    lengths = torch.tensor(lengths)
    return torch.arange(longest or int(lengths.max())) < lengths[:, None]


def rows_of(groups, rows):
    return [list(range(rows)) if isinstance(part, slice) else part.tolist() for part, _ in groups]


def test_few_texts_or_equal_ones_are_read_at_once():
    for lengths in ([2, 9, 40], [7] * (2 * LEAST_ROWS)):
        order, groups = length_groups(mask_of(lengths))
        assert groups == [(slice(None), max(lengths))]
        assert sorted(order.tolist()) == list(range(len(lengths)))


def test_every_text_is_in_one_group_that_is_as_long_as_its_longest():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (200,), generator=generator).tolist()
    order, groups = length_groups(mask_of(lengths))
    found = rows_of(groups, 200)
    assert 1 < len(groups) <= GROUPS
    assert sorted(row for part in found for row in part) == list(range(200))
    assert [row for part in found for row in part] == order.tolist()
    for part, (_, length) in zip(found, groups, strict=True):
        assert length == max(lengths[row] for row in part)


def test_groups_are_only_made_if_they_save_enough():
    lengths = [10] * (LEAST_ROWS - 1) + [40]
    _, groups = length_groups(mask_of(lengths))
    work = sum(len(part) * length for part, length in groups)
    assert work < WORTH * LEAST_ROWS * 40
    assert [length for _, length in groups] == [10, 40]
    nearly = [10] * (LEAST_ROWS - 1) + [11]
    assert len(length_groups(mask_of(nearly))[1]) == 1


def test_one_cut_saves_what_the_best_of_all_cuts_would():
    lengths = sorted(torch.randint(1, 30, (LEAST_ROWS,), generator=torch.Generator().manual_seed(2)).tolist())
    from unicl.towers.lengths import _best_cut

    saved, place = _best_cut(torch.tensor(lengths), 0, len(lengths))
    every = {cut: cut * (lengths[-1] - lengths[cut - 1]) for cut in range(1, len(lengths))}
    assert saved == max(every.values()) == every[place]


@pytest.mark.parametrize("longest", [1, 5])
def test_texts_without_a_token_are_read_as_one_token_long(longest):
    _, groups = length_groups(mask_of([0] * LEAST_ROWS, longest))
    assert min(length for _, length in groups) >= 1
