import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

import oracles
from unicl.evaluate.known import Known
from unicl.evaluate.svm import cannot_separate, folds, precision_statistic, run_svm, train_machine
from unicl.space import Finding


def crowd(size=60, seed=0, share=0.4):
    generator = torch.Generator().manual_seed(seed)
    yes = torch.rand(size, generator=generator) < share
    features = torch.randn(size, 5, generator=generator).double() + yes[:, None] * 0.8
    return torch.nn.functional.normalize(features, dim=1), yes


def plain(features, yes):
    """VirTex's protocol in a few lines of scikit-learn."""
    signs = np.where(yes.numpy(), 1, -1)
    machines = [
        LinearSVC(C=c, loss="squared_hinge", dual=True, class_weight={1: 2, -1: 1}, max_iter=2000, random_state=0)
        for c in (0.01, 0.1, 1.0, 10.0)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [
            cross_val_score(m, features.numpy(), signs, cv=3, scoring="average_precision").mean() for m in machines
        ]
        return machines[int(np.argmax(found))].fit(features.numpy(), signs)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_machine_is_scikit_learns_with_the_best_of_four_costs(seed):
    features, yes = crowd(seed=seed)
    machine, wanted = train_machine(features, yes, seed=0), plain(features, yes)
    assert machine.cost == wanted.C
    assert np.array_equal(features.numpy() @ machine.weight.numpy() + machine.bias, wanted.decision_function(features))


def test_folds_keep_a_patient_together():
    features, yes = crowd(size=90)
    patients = [f"p{k // 3}" for k in range(90)]
    signs = np.where(yes.numpy(), 1, -1)
    found = folds(signs, patients)
    assert len(found) == 3
    for learnt, asked in found:
        assert not {patients[k] for k in learnt} & {patients[k] for k in asked}
    assert train_machine(features, yes, seed=0, patients=patients).cost in (0.01, 0.1, 1.0, 10.0)
    # All yeses are of two patients: what is left of the folds can be learned from, or nothing is tried.
    few = np.array([1, 1, 1, 1] + [-1] * 8)
    assert all(len(set(few[learnt])) == 2 for learnt, _ in folds(few, ["a", "a", "b", "b"] + ["c"] * 8))


def test_too_few_yeses_for_folds_take_a_cost_of_one():
    features, _ = crowd()
    yes = torch.zeros(60, dtype=torch.bool)
    yes[3] = True
    assert train_machine(features, yes, seed=0).cost == 1.0
    yes[9] = True
    assert train_machine(features, yes, seed=0).cost in (0.01, 0.1, 1.0, 10.0)


def test_precision_is_that_of_plain_loops_and_of_scikit_learn_and_counts_repeated_samples():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 7, (30, 2), generator=generator).double()
    yes = torch.rand(30, 2, generator=generator) > 0.6
    asked = torch.rand(30, 2, generator=generator) > 0.2
    times = torch.randint(0, 3, (30,), generator=generator)
    statistic = precision_statistic(scores, Known(yes=yes, asked=asked))
    both = statistic(torch.stack([torch.ones(30), times]).double())
    for drawn, values in zip((torch.arange(30), torch.repeat_interleave(torch.arange(30), times)), both):
        for c in range(2):
            rows = drawn[asked[drawn, c]]
            wanted = average_precision_score(yes[rows, c], scores[rows, c])
            assert math.isclose(float(values[1 + c]), wanted, rel_tol=1e-12)
            assert math.isclose(wanted, oracles.average_precision(scores[rows, c].tolist(), yes[rows, c].tolist()))
        assert math.isclose(float(values[0]), float(values[1:].mean()), rel_tol=1e-12)


def test_labels_are_one_class_against_the_rest(job):
    assert cannot_separate(job.plan) is None
    result = run_svm(job)
    assert result.scores[0].key == "svm/map"
    assert {score.name for score in result.scores[1:]} == {"red", "green", "blue", "grey"}
    assert result.facts["features"] == job.pictures.features.shape[1]
    assert run_svm(job) == result


def with_findings(pictures, *, doubt=()):
    known = [
        replace(
            sample,
            labels=(),
            findings=(("red", Finding.UNCERTAIN if k in doubt else Finding(int(sample.labels == ("red",)))),),
        )
        for k, sample in enumerate(pictures.samples)
    ]
    return replace(pictures, samples=tuple(known))


def test_what_is_difficult_is_a_no_in_training_and_not_asked_for_in_the_test(job):
    test = with_findings(job.pictures, doubt=(0,))
    result = run_svm(replace(job, pictures=test, training=with_findings(job.pictures)))
    assert result.scores[1].n == len(test.samples) - 1
    sure = replace(job, pictures=with_findings(job.pictures), training=with_findings(job.pictures, doubt=(0,)))
    first, *rest = with_findings(job.pictures).samples
    samples = (replace(first, findings=(("red", Finding.ABSENT),)), *rest)
    assert run_svm(sure) == run_svm(replace(sure, training=replace(sure.training, samples=samples)))


def test_data_that_cannot_be_separated_says_why(job):
    every = replace(job.plan, samples=tuple(replace(s, findings=(("x", Finding.PRESENT),)) for s in job.plan.samples))
    assert "some of the images have and others do not" in cannot_separate(every)
    halves = replace(job.plan, samples=with_findings(job.pictures).samples, training=job.plan.samples)
    assert cannot_separate(halves) == "the training data has no findings"
    assert cannot_separate(replace(job.plan, samples=tuple(replace(s, labels=()) for s in job.plan.samples)))
