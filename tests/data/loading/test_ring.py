import gc
import os

import pytest
import torch

from unicl.data.loading.ring import Ring, Room, Watch, nameless

ROOM = Room(slots=3, views=2, rows=5, side=7, threads=2)


@pytest.fixture
def ring():
    fd = nameless(ROOM)
    made = Ring(ROOM, fd=fd)
    os.close(fd)
    return made


def test_two_rings_on_one_memory_see_the_same_and_slots_lie_apart():
    fd = nameless(ROOM)
    one, two = Ring(ROOM, fd=fd), Ring(ROOM, fd=fd)
    os.close(fd)
    for number in range(3):
        one.slot(number).fill_(number + 1)
    one.watch.begin(1, 12)
    assert [two.slot(number).unique().tolist() for number in range(3)] == [[1], [2], [3]]
    assert two.slot(0).shape == (2, 5, 3, 7, 7)
    assert two.watch.longest()[0] == 12


def test_a_slot_comes_back_when_the_last_view_of_it_is_gone(ring):
    pixels = ring.lend(1)
    view = pixels[0, :3]
    del pixels
    gc.collect()
    assert ring.reclaimed() == []
    part = view[1].reshape(-1)
    del view
    gc.collect()
    assert ring.reclaimed() == []
    del part
    gc.collect()
    assert ring.reclaimed() == [1]
    assert ring.reclaimed() == []


def test_memory_outlives_the_ring_as_long_as_it_is_used(ring):
    pixels = ring.lend(2).fill_(9)
    del ring
    gc.collect()
    assert pixels.unique().tolist() == [9]


def test_the_watch_names_what_is_read_for_the_longest_time():
    watch = Watch.alone(3)
    assert watch.longest() is None
    watch.begin(2, 0)
    watch.begin(0, 7)
    assert watch.longest()[0] == 0
    watch.end(2)
    assert watch.longest()[0] == 7
    watch.end(0)
    assert watch.longest() is None


@pytest.mark.gpu
def test_a_pinned_ring_is_copied_before_a_slot_comes_back(ring):
    ring.pin()
    pixels = ring.lend(0).fill_(5)
    assert pixels.is_pinned()
    copy = pixels.to("cuda", non_blocking=True)
    del pixels
    gc.collect()
    assert ring.reclaimed(wait=True) == [0]
    assert copy.unique().tolist() == [5]
    assert torch.equal(copy.cpu(), ring.slot(0))
    ring.unpin()
