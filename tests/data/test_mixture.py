from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicl.data.mixture import Mixture, Pool, Tars, pools_of
from unicl.data.sources import Source
from unicl.errors import UserError
from unicl.space import Finding, RemoteTar, Sample, Streamed

GOLDEN = [8, 4, 3, 1, 9, 9, 10, 11, 0, 7, 11, 7, 2, 6, 8, 5, 10]


def mixture(*pools, seed=0):
    starts = np.cumsum([0, *(size for size, _ in pools)])
    made = [Pool(indices=np.arange(s, s + n), weight=w) for s, (n, w) in zip(starts, pools, strict=False)]
    return Mixture(made, seed=seed)


def tars(count, *, each, reach):
    found = tuple(RemoteTar(f"https://x/{k}.tar", Path(f"/{k}.tar"), 9) for k in range(count))
    return Tars(tars=found, numbers=np.repeat(np.arange(count), each), reach=reach)


def streamed(count=20, *, each=50, reach=200, seed=0, weight=1.0):
    pool = Pool(indices=np.arange(count * each), weight=weight, tars=tars(count, each=each, reach=reach))
    return Mixture([pool], seed=seed)


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


def test_each_finding_is_drawn_as_often_among_images_and_among_texts(tmp_path):
    present = {name: ((name, Finding.PRESENT), ("common", Finding.PRESENT)) for name in ("rare", "common")}
    none = (("rare", Finding.ABSENT), ("common", Finding.UNCERTAIN))
    images = [present["rare"]] * 2 + [present["common"]] * 8 + [none] * 6
    samples = [Sample(id=f"i{k}", image=b"x", findings=each) for k, each in enumerate(images)]
    texts = [Sample(id=f"t{k}", captions=("a",), findings=each) for k, each in enumerate(images[1:5])]
    mix = Mixture(pools_of([source(tmp_path, *samples, *texts)], balance="findings"), seed=0)
    drawn = [mix.draw(p) for p in range(mix.start(1))]
    assert [sum(k in part for k in drawn) for part in (range(2), range(2, 10), range(10, 16))] == [8, 8, 8]
    assert [sum(k in part for k in drawn) for part in (range(16, 17), range(17, 20))] == [3, 3]


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(UserError, match="nothing to train on"):
        Mixture(pools_of([source(tmp_path, Sample(id="a"), weight=0.0)], balance=False), seed=0)


def test_streamed_samples_come_once_per_epoch_in_another_order_each_time():
    mix = streamed()
    first, second = ([mix.draw(1000 * e + p) for p in range(1000)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert [k // 50 for k in first] != [k // 50 for k in second]
    assert [streamed(seed=1).draw(p) for p in range(9)] != first[:9]
    later = streamed()
    assert [later.draw(p) for p in range(1500, 1510)] == second[500:510]


def test_few_tars_are_in_use_at_a_time_and_their_samples_are_mixed():
    mix = streamed()
    order = np.array([mix.draw(p) // 50 for p in range(1000)])
    for tar in range(20):
        places = np.flatnonzero(order == tar)
        assert places.max() - places.min() <= 50 + 200
    # The share of neighbours from one tar: all but 19 in the order of the tars, a twentieth in no order.
    assert (order[1:] == order[:-1]).mean() < 0.5
    assert all(len(set(order[place : place + 16])) >= 2 for place in (0, 500, 984))
    whole = np.array([streamed(reach=1000).draw(p) // 50 for p in range(1000)])
    assert (whole[1:] == whole[:-1]).mean() < 0.1


@pytest.mark.parametrize("start", [0, 300, 950, 2049])
def test_the_tars_that_come_are_told_in_the_order_of_their_need(start):
    mix = streamed()
    coming = mix.coming(start)
    begin = start // 256 * 256
    used = [mix.draw(p) // 50 for p in range(begin, start + 100)]
    assert coming[: len(set(used))] == tuple(mix.pools[0].tars.tars[k] for k in dict.fromkeys(used))
    assert len(coming) < 20
    assert mixture((7, 1.0)).coming(3) == ()


def test_streaming_one_source_leaves_the_places_of_the_others_as_they_are():
    pools = [Pool(indices=np.arange(100), weight=1.0), Pool(indices=np.arange(100, 300), weight=0.7)]
    plain = Mixture(pools, seed=3)
    mix = Mixture([pools[0], replace(pools[1], tars=tars(4, each=50, reach=10))], seed=3)
    one, other = ([m.draw(p) for p in range(600)] for m in (plain, mix))
    assert [k if k < 100 else -1 for k in one] == [k if k < 100 else -1 for k in other]
    assert one != other
    assert Counter(other[: mix.start(1)]).most_common(1)[0][1] == 1


def test_the_order_of_sources_on_the_disk_is_the_one_it_has_always_been():
    mix = mixture((7, 1.0), (5, 2.0), seed=4)
    assert [mix.draw(p) for p in range(17)] == GOLDEN


def test_a_balanced_streamed_source_keeps_the_tar_of_each_sample(tmp_path):
    found = tars(3, each=1, reach=5).tars
    samples = [
        Sample(id=str(k), image=Streamed(found[k // 4], k, 1), **({"labels": ("a",)} if k % 4 == 0 else {}))
        for k in range(12)
    ]
    samples.insert(5, Sample(id="text", captions=("no image",)))
    one, two = pools_of([replace(source(tmp_path, *samples), reach=5)], balance=True)
    assert one.tars.numbers.tolist() == [0, 1, 2]
    assert two.tars.numbers.tolist() == [0] * 3 + [1] * 4 + [2] * 3
    assert Mixture([one, two], seed=0).coming(0) == tuple(dict.fromkeys(Mixture([one, two], seed=0).coming(0)))
