import numpy as np
import pytest
import torch

from unicl.evaluate.probe import first_classes, fit_logistic, search, strength_of, train_probe
from unicl.evaluate.zeroshot import Truth


def crowd(size, *, classes=3, seed=0, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % classes
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(99))
    return centres[labels] + noise * torch.randn(size, 6, generator=generator), labels


def test_strengths_run_from_a_millionth_to_a_million_in_eighths_of_a_decade():
    assert strength_of(0) == pytest.approx(1e-6)
    assert strength_of(48) == pytest.approx(1)
    assert strength_of(96) == pytest.approx(1e6)
    assert strength_of(49) / strength_of(48) == pytest.approx(10 ** (1 / 8))


@pytest.mark.parametrize("peak", [0, 1, 37, 48, 63, 95, 96])
def test_the_search_finds_the_peak_of_a_curve_with_one_peak(peak):
    asked = []

    def score(step):
        asked.append(step)
        return -abs(step - peak), 0.0

    assert search(score) == peak
    assert asked[:7] == [0, 16, 32, 48, 64, 80, 96]
    assert len(asked) == len(set(asked)) <= 15


def test_equal_accuracies_go_to_the_likelier_truth_and_then_to_the_stronger_regularisation():
    assert search(lambda step: (0.5, -abs(step - 21))) == 21
    assert search(lambda step: (float(step <= 32), 0.0)) == 32
    assert search(lambda _: (0.5, 0.0)) == 96


def test_a_fit_is_scikit_learns_and_its_gradient_is_zero():
    features, labels = crowd(90)
    fit = fit_logistic(features, Truth.of(labels), classes=3, strength=2.0, max_iterations=1000)
    weight, bias = fit.weight.clone().requires_grad_(), fit.bias.clone().requires_grad_()
    scores = features.double() @ weight.T + bias
    # scikit-learn: C times the sum of the losses plus half the square, which is the sum plus strength / 2 of it.
    loss = torch.nn.functional.cross_entropy(scores, labels, reduction="sum") + 2.0 / 2 * (weight**2).sum()
    loss.backward()
    assert float(weight.grad.abs().max()) < 0.05
    assert float(bias.grad.abs().max()) < 0.05
    assert fit.converged


def test_scores_agree_with_scikit_learns_for_two_and_for_three_classes():
    from sklearn.linear_model import LogisticRegression

    for classes in (2, 3):
        features, labels = crowd(60, classes=classes)
        fit = fit_logistic(features, Truth.of(labels), classes=classes, strength=0.5, max_iterations=1000)
        theirs = LogisticRegression(C=2.0, max_iter=1000).fit(features.double().numpy(), labels.numpy())
        ours = fit.scores(features).softmax(1).numpy()
        assert np.abs(ours - theirs.predict_proba(features.double().numpy())).max() < 1e-9


def test_a_class_that_training_never_showed_is_never_predicted():
    features, labels = crowd(60, classes=2)
    fit = fit_logistic(features, Truth.of(labels * 3), classes=5, strength=1.0, max_iterations=1000)
    scores = fit.scores(features)
    assert scores[:, [1, 2, 4]].isneginf().all()
    assert set(scores.argmax(1).tolist()) <= {0, 3}


def test_the_probe_learns_on_all_samples_with_the_strength_that_it_found():
    features, labels = crowd(120, noise=1.5)
    truth = Truth.of(labels)
    ticks = []
    probe = train_probe(
        features, truth, classes=3, generator=torch.Generator().manual_seed(0), tick=lambda: ticks.append(1)
    )
    again = fit_logistic(features, truth, classes=3, strength=probe.strength, max_iterations=1000)
    assert torch.equal(probe.fit.weight, again.weight)
    best = max(right for _, right, _ in probe.tried)
    assert probe.strength in [strength for strength, right, _ in probe.tried if right == best]
    assert probe.held_out == 24
    assert len(ticks) == len(probe.tried) + 1
    test, wanted = crowd(90, seed=1, noise=1.5)
    assert float((probe.fit.scores(test).argmax(1) == wanted).double().mean()) > 0.7


def test_a_fit_that_was_cut_short_says_so():
    features, labels = crowd(90)
    fit = fit_logistic(features, Truth.of(labels), classes=3, strength=1e-6, max_iterations=2)
    assert not fit.converged
    assert fit.iterations == 2


def test_one_sample_a_class_leaves_nothing_to_hold_out():
    features, labels = crowd(3)
    probe = train_probe(features, Truth.of(labels), classes=3, generator=torch.Generator().manual_seed(0))
    assert probe.tried == ()
    assert probe.strength == 1
    assert probe.fit.scores(features).argmax(1).tolist() == labels.tolist()


def test_a_sample_of_two_classes_is_learned_with_each():
    features, _ = crowd(40, classes=2)
    doubled = Truth.of([{k % 2, 2} for k in range(40)])
    fit = fit_logistic(features, doubled, classes=3, strength=1.0, max_iterations=1000)
    shares = fit.scores(features).softmax(1)
    assert float(shares[:, 2].mean()) == pytest.approx(0.5, abs=1e-3)


def test_samples_are_split_by_the_first_of_their_classes():
    assert first_classes(Truth.of([{4, 2}, {1}, {3, 0}])) == [2, 1, 0]
