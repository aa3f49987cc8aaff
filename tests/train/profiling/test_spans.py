import pytest

from unicl.train.profiling.spans import length, shared, united


def test_touching_and_nested_stretches_become_one():
    assert united([(4, 6), (0, 1), (1, 3), (4.5, 5)]) == [(0, 3), (4, 6)]


def test_time_that_two_lists_share_is_found_in_any_order():
    assert shared([(5, 9), (0, 2)], [(1, 6), (8, 10)]) == [(1, 2), (5, 6), (8, 9)]


def test_stretches_that_only_touch_share_nothing():
    assert shared([(0, 1), (2, 3)], [(1, 2)]) == []


def test_overlapping_time_is_measured_once():
    assert length([(0, 2), (1, 3), (10, 10.5)]) == pytest.approx(3.5)
    assert length([]) == 0
