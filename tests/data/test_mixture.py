from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicl.data.mixture import Mixture, Pool, pools_of
from unicl.data.sources import Source
from unicl.errors import UserError
from unicl.space import Sample


def mixture(*pools, seed=0):
    starts = np.cumsum([0, *(size for size, _ in pools)])
    made = [Pool(indices=np.arange(s, s + n), weight=w) for s, (n, w) in zip(starts, pools, strict=False)]
    return Mixture(made, seed=seed)


def source(tmp_path, *samples, name="x", weight=1.0):
    return Source(
        name=name,
        path=tmp_path,
        format="csv",
        samples=tuple(samples),
        weight=weight,
        guessed={},
        notes=(),
        root=tmp_path,
    )


def test_each_sample_comes_once_per_epoch_and_in_another_order():
    mix = mixture((7, 1.0), (5, 1.0))
    first, second = ([mix.draw(p) for p in range(12 * e, 12 * e + 12)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_a_weight_of_two_draws_twice_and_of_a_half_every_other_epoch():
    mix = mixture((4, 2.0), (6, 0.5))
    epochs = [Counter(mix.draw(p) for p in range(mix.start(e), mix.start(e + 1))) for e in (0, 1)]
    assert [epochs[0][k] for k in range(4)] == [2] * 4
    both = epochs[0] + epochs[1]
    assert [both[k] for k in range(4, 10)] == [1] * 6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.3, 0.5, 1.0, 1.7, 3.0])), min_size=1, max_size=3))
def test_any_position_can_be_asked_for_first(pools):
    length = 40
    in_order, alone = mixture(*pools), mixture(*pools)
    order = [in_order.draw(p) for p in range(length)]
    assert [alone.draw(p) for p in reversed(range(length))] == order[::-1]
    three = Counter(in_order.draw(p) for p in range(in_order.start(3)))
    start = 0
    for size, weight in pools:
        seen = [three[k] for k in range(start, start + size)]
        assert max(seen) - min(seen) <= 1
        assert abs(sum(seen) - 3 * weight * size) <= 1
        start += size


def test_another_seed_gives_another_order():
    assert [mixture((30, 1.0), seed=s).draw(0) for s in range(8)] != [mixture((30, 1.0)).draw(0)] * 8


def test_balance_draws_as_many_labelled_as_captioned(tmp_path):
    labelled = [Sample(id=str(k), labels=("a",)) for k in range(2)]
    captioned = [Sample(id=f"c{k}", captions=("a caption",)) for k in range(8)]
    mix = Mixture(pools_of([source(tmp_path, *labelled, *captioned)], balance=True), seed=0)
    drawn = [mix.draw(p) for p in range(mix.start(1))]
    assert sum(k < 2 for k in drawn) == sum(k >= 2 for k in drawn) == 8
    alone = pools_of([source(tmp_path, *labelled)], balance=True)
    assert Mixture(alone, seed=0).start(1) == 2


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(UserError, match="nothing to train on"):
        Mixture(pools_of([source(tmp_path, Sample(id="a"), weight=0.0)], balance=False), seed=0)
