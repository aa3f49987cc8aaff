from math import comb, log

import numpy as np
import pytest

from unicl.data.check.floor import false_negatives

MANY = 10**8


@pytest.mark.parametrize(
    ("classes", "batch_size", "floor", "share"),
    [
        (10, 64, 1.93, 0.999),
        (10, 128, 2.59, None),
        (10, 256, 3.26, None),
        (10, 32768, 8.09, None),
        (100, 64, 0.39, 0.47),
        (100, 128, 0.70, 0.72),
        (100, 256, 1.16, 0.92),
        (100, 4096, 3.72, None),
        (1000, 256, 0.17, 0.23),
        (1000, 4096, 1.54, 0.98),
        (21841, 64, 0.00, 0.003),
        (21841, 32768, 0.79, 0.78),
    ],
)
def test_balanced_classes_without_end_give_the_known_floor(
    classes: int, batch_size: int, floor: float, share: float | None
) -> None:
    found = false_negatives([MANY // classes] * classes, batch_size=batch_size)
    assert found.floor == pytest.approx(floor, abs=0.006)
    assert found.expected == pytest.approx((batch_size - 1) / classes, rel=1e-3)
    if share is not None:
        assert found.share == pytest.approx(share, abs=0.006)


def oracle(counts: list[int], batch_size: int) -> tuple[float, float, float]:
    """Over every row and every number of others it can meet, with whole numbers."""
    total, drawn = sum(counts), batch_size - 1
    share = expected = floor = 0.0
    for n in counts:
        for k in range(min(n - 1, drawn) + 1):
            ways = comb(n - 1, k) * comb(total - n, drawn - k)
            chance = n / total * ways / comb(total - 1, drawn)
            share += chance * (k > 0)
            expected += chance * k
            floor += chance * log(1 + k)
    return share, expected, floor


@pytest.mark.parametrize("batch_size", [2, 5, 17])
def test_uneven_counts_agree_with_plain_loops(batch_size: int) -> None:
    counts = [1, 1, 2, 3, 3, 8]
    found = false_negatives(counts, batch_size=min(batch_size, sum(counts)))
    assert (found.share, found.expected, found.floor) == pytest.approx(oracle(counts, batch_size), rel=1e-10)


def test_a_shuffled_epoch_meets_as_often_as_predicted() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([40, 20, 10, 5, *[1] * 25])
    keys = np.repeat(np.arange(len(counts)), counts)
    floors, shares = [], []
    for _ in range(4000):
        batch = rng.permutation(keys)[:16]
        others = (batch[:, None] == batch[None]).sum(1) - 1
        floors.append(np.log1p(others).mean())
        shares.append((others > 0).mean())
    found = false_negatives(counts, batch_size=16)
    assert found.floor == pytest.approx(np.mean(floors), abs=0.01)
    assert found.share == pytest.approx(np.mean(shares), abs=0.01)


def test_texts_that_all_differ_cost_nothing() -> None:
    found = false_negatives([1] * 1000, batch_size=256)
    assert (found.share, found.expected, found.floor) == (0.0, 0.0, 0.0)


def test_a_batch_is_never_more_than_the_data() -> None:
    found = false_negatives([3, 2], batch_size=256)
    assert found.rows == 5
    assert found.floor == pytest.approx((3 * log(3) + 2 * log(2)) / 5)


@pytest.mark.parametrize("counts", [[], [1]])
def test_nothing_to_meet_is_no_error(counts: list[int]) -> None:
    assert false_negatives(counts, batch_size=64).floor == 0.0
