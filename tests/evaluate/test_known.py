import math

import torch
from sklearn.metrics import roc_auc_score

import oracles
from unicl.evaluate.known import Known, area_statistic, areas
from unicl.space import Finding, Sample

CELLS = (Finding.PRESENT, Finding.ABSENT, Finding.UNCERTAIN, Finding.UNMENTIONED)


def test_what_is_known_follows_the_cells_and_both_choices():
    samples = [Sample(id=str(k), findings=(("x", cell),)) for k, cell in enumerate(CELLS)] + [Sample(id="none")]
    usual = Known.of(samples, ("x", "y"))
    assert usual.yes[:, 0].tolist() == [True, False, False, False, False]
    assert usual.asked[:, 0].tolist() == [True, True, False, True, False]
    # A finding that the table of a sample lacks is not mentioned there.
    assert usual.asked[:, 1].tolist() == [True, True, True, True, False]
    other = Known.of(samples, ("x",), unmentioned="ignored", uncertain="absent")
    assert other.asked[:, 0].tolist() == [True, True, True, False, False]
    assert Known.of([], ("x",)).yes.shape == (0, 1)


def test_areas_are_those_of_plain_loops_and_of_scikit_learn_with_ties():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40, 3), generator=generator).double()
    yes, asked = (torch.rand(40, 3, generator=generator) > p for p in (0.6, 0.2))
    found = areas(scores, Known(yes=yes, asked=asked))
    for c in range(3):
        own = asked[:, c]
        wanted = oracles.area_under_roc(scores[own, c].tolist(), yes[own, c].tolist())
        assert math.isclose(float(found[c]), wanted, rel_tol=1e-12)
        assert math.isclose(wanted, roc_auc_score(yes[own, c], scores[own, c]), rel_tol=1e-12)


def test_a_finding_that_all_have_has_no_area_and_no_share_in_the_mean():
    yes = torch.tensor([[True, True], [False, True], [False, True]])
    known = Known(yes=yes, asked=torch.ones_like(yes))
    scores = torch.tensor([[2.0, 1.0], [1.0, 3.0], [3.0, 2.0]])
    values = area_statistic(scores, known)(torch.ones(1, 3).double())[0]
    assert values[:2].tolist() == [0.5, 0.5]
    assert values[2].isnan()


def test_a_sample_that_is_drawn_twice_counts_as_two():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 5, (9, 1), generator=generator).double()
    yes = torch.rand(9, 1, generator=generator) > 0.5
    times = torch.randint(0, 3, (9,), generator=generator)
    drawn = torch.repeat_interleave(torch.arange(9), times)
    whole = area_statistic(scores, Known(yes=yes, asked=torch.ones_like(yes)))(times[None].double())[0, 1]
    assert math.isclose(
        float(whole), oracles.area_under_roc(scores[drawn, 0].tolist(), yes[drawn, 0].tolist()), rel_tol=1e-12
    )
