import math

import pytest
import torch

from evaluate_oracles import median, quantile
from unicl.evaluate.bootstrap import Bootstrap, by_unit, grouped_means, means, medians, ratios, together


def resamples(bootstrap, samples):
    """The resamples themselves, as lists of counts."""
    drawn = []

    def keep(weights_RN):
        drawn.extend(weights_RN.long().tolist())
        return weights_RN[:, :1]

    bootstrap.bounds(keep, samples=samples)
    return drawn


def repeat(values, counts):
    return [v for v, n in zip(values, counts, strict=True) for _ in range(n)]


def test_every_resample_has_as_many_samples_as_the_data():
    drawn = resamples(Bootstrap(resamples=50), 13)
    assert len(drawn) == 50
    assert all(sum(counts) == 13 for counts in drawn)
    assert len({tuple(counts) for counts in drawn}) > 40


def test_a_share_has_the_interval_of_the_normal_approximation():
    n, p = 2000, 0.3
    values = torch.zeros(n, 1)
    values[: int(n * p)] = 1
    low, high = Bootstrap(resamples=2000).bounds(means(values), samples=n)[:, 0].tolist()
    half = 1.959964 * math.sqrt(p * (1 - p) / n)
    assert low == pytest.approx(p - half, abs=0.1 * half)
    assert high == pytest.approx(p + half, abs=0.1 * half)


def test_intervals_are_the_same_again_and_differ_by_seed():
    values = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    first, again, other = (Bootstrap(seed=s).bounds(means(values), samples=40) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_intervals_do_not_depend_on_how_many_resamples_are_made_at_a_time(monkeypatch):
    values = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    whole = Bootstrap(resamples=70).bounds(means(values), samples=40)
    monkeypatch.setattr("unicl.evaluate.bootstrap.CELLS", 400)
    assert torch.equal(Bootstrap(resamples=70).bounds(means(values), samples=40), whole)


def test_a_wider_level_gives_a_wider_interval():
    values = torch.rand(60, 1, generator=torch.Generator().manual_seed(0))
    low90, high90 = Bootstrap(level=0.9).bounds(means(values), samples=60)[:, 0]
    low99, high99 = Bootstrap(level=0.99).bounds(means(values), samples=60)[:, 0]
    assert low99 < low90 < high90 < high99


def test_the_bounds_are_the_interpolated_quantiles_of_the_resampled_means():
    bootstrap = Bootstrap(resamples=30)
    values = torch.rand(9, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = [repeat(values[:, 0].tolist(), counts) for counts in resamples(bootstrap, 9)]
    wanted = [sum(one) / len(one) for one in drawn]
    found = bootstrap.bounds(means(values), samples=9)[:, 0].tolist()
    assert found == pytest.approx([quantile(wanted, 0.025), quantile(wanted, 0.975)], abs=1e-12)


def test_the_mean_of_class_means_leaves_out_classes_that_a_resample_misses():
    bootstrap = Bootstrap(resamples=25)
    hits, label = [1.0, 0.0, 1.0, 1.0, 0.0], [0, 0, 1, 2, 2]
    found = []
    for counts in resamples(bootstrap, 5):
        of_class = []
        for c in range(3):
            own = repeat(
                [h for h, k in zip(hits, label, strict=True) if k == c],
                [n for n, k in zip(counts, label, strict=True) if k == c],
            )
            of_class.append(sum(own) / len(own) if own else math.nan)
        seen = [v for v in of_class if not math.isnan(v)]
        found.append([sum(seen) / len(seen), *of_class])
    statistic = grouped_means(torch.tensor(hits), samples_E=torch.arange(5), groups_E=torch.tensor(label), groups=3)
    bounds = bootstrap.bounds(statistic, samples=5)
    for column in range(4):
        values = [row[column] for row in found]
        assert float(bounds[0, column]) == pytest.approx(quantile(values, 0.025), abs=1e-12)
        assert float(bounds[1, column]) == pytest.approx(quantile(values, 0.975), abs=1e-12)


def test_a_class_without_samples_has_no_interval():
    statistic = grouped_means(torch.ones(2), samples_E=torch.arange(2), groups_E=torch.tensor([0, 0]), groups=2)
    bounds = Bootstrap(resamples=5).bounds(statistic, samples=2)
    assert bounds[:, :2].tolist() == [[1, 1], [1, 1]]
    assert bounds[:, 2].isnan().all()


def test_medians_are_those_of_the_repeated_values():
    values, owner = [5.0, 1.0, 9.0, 2.0, 2.0, 7.0], [0, 0, 1, 2, 2, 3]
    weights = torch.tensor(resamples(Bootstrap(resamples=40), 4), dtype=torch.float64)
    found = medians(torch.tensor(values), samples_Q=torch.tensor(owner))(weights)[:, 0]
    for counts, one in zip(weights.long().tolist(), found.tolist(), strict=True):
        assert one == median(repeat(values, [counts[o] for o in owner]))


def test_a_median_of_nothing_is_not_a_number():
    found = medians(torch.tensor([3.0]), samples_Q=torch.tensor([1]))(torch.tensor([[2.0, 0.0]]).double())
    assert found.isnan().all()


def test_ratios_count_the_items_of_each_sample():
    weights = torch.tensor([[1.0, 1.0], [0.0, 2.0]]).double()
    found = ratios(torch.tensor([[3.0], [1.0]]), counts_NS=torch.tensor([[4.0], [1.0]]))(weights)
    assert found[:, 0].tolist() == [4 / 5, 1.0]


def test_statistics_together_stand_side_by_side():
    weights = torch.ones(1, 2).double()
    both = together(means(torch.tensor([[1.0], [3.0]])), means(torch.tensor([[0.0, 8.0], [0.0, 0.0]])))
    assert both(weights).tolist() == [[2, 0, 4]]


def test_units_are_drawn_whole_so_that_copies_of_a_sample_tell_nothing_new():
    values = torch.rand(20, 1, generator=torch.Generator().manual_seed(0))
    whole, units = by_unit(means(values.repeat_interleave(3, 0)), [range(3 * k, 3 * k + 3) for k in range(20)])
    assert units == 20
    bootstrap = Bootstrap(resamples=200)
    assert torch.allclose(bootstrap.bounds(whole, samples=units), bootstrap.bounds(means(values), samples=20))
