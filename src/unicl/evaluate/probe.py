"""Linear probe by CLIP's protocol (appendix A.3): logistic regression on the features before the head."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unicl.evaluate.split import stratified
from unicl.evaluate.zeroshot import Truth, zero_shot

STEPS_PER_DECADE = 8
SMALLEST = -6
STEPS = 96
COARSE = 16
MAX_ITERATIONS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One logistic regression: ``weight (C, F)`` and ``bias (C,)`` float64, and whether the solver came to its end."""

    weight: Tensor
    bias: Tensor
    iterations: int
    converged: bool

    def scores(self, features_NF: Tensor) -> Tensor:
        """``(N, C)`` float64 log-odds up to a constant; minus infinity for a class that training never showed."""
        return features_NF.double() @ self.weight.T + self.bias


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The final fit on all training samples, and the search that chose its L2 strength.

    ``tried``: each strength with the accuracy on the held-out part and whether that fit converged, ascending; empty
    if there was nothing to hold out, and the strength is 1.
    """

    fit: Fit
    strength: float
    tried: tuple[tuple[float, float, bool], ...]
    held_out: int


def train_probe(
    features_NF: Tensor,
    truth: Truth,
    *,
    classes: int,
    generator: torch.Generator,
    patients: Sequence[str] = (),
    held_out: float = 0.2,
    max_iterations: int = MAX_ITERATIONS,
    tick: Callable[[], None] = lambda: None,
) -> Probe:
    """Search the L2 strength on a stratified held-out part, then fit training and held-out samples together.

    With ``patients``, one a sample, the held-out part is of others than the rest (`unicl.evaluate.split.stratified`).
    ``tick`` is called after each fit. A sample with several classes is learned once with each.
    """
    train, test = stratified(first_classes(truth), fraction=held_out, generator=generator, patients=patients)
    fits: dict[int, tuple[float, bool]] = {}

    def held_out_score(step: int) -> tuple[float, float]:
        fit = fit_logistic(
            features_NF[train],
            truth.take(train),
            classes=classes,
            strength=strength_of(step),
            max_iterations=max_iterations,
        )
        scores_NC = fit.scores(features_NF[test])
        outcomes = zero_shot(scores_NC, truth.take(test))
        right = float(outcomes.hits(1).mean())
        fits[step] = (right, fit.converged)
        tick()
        return right, float(scores_NC.log_softmax(1).gather(1, outcomes.nearest[:, None]).mean())

    strength = strength_of(search(held_out_score)) if len(test) else 1.0
    fit = fit_logistic(features_NF, truth, classes=classes, strength=strength, max_iterations=max_iterations)
    tick()
    tried = tuple((strength_of(step), *fits[step]) for step in sorted(fits))
    return Probe(fit=fit, strength=strength, tried=tried, held_out=len(test))


def search(score: Callable[[int], tuple[float, float]]) -> int:
    """The best step of a grid of 97, by CLIP's parametric binary search: coarse, then halved around the peak.

    Starts at 1e-6, 1e-4, ..., 1e6 and ends at 8 steps a decade. ``score`` gives the accuracy and, since accuracies of
    a small held-out part are often equal, the mean log-probability of the truth; if both are, the stronger L2 wins.
    """
    seen = {step: score(step) for step in range(0, STEPS + 1, COARSE)}
    width = COARSE
    while width > 1:
        width //= 2
        peak = _peak(seen)
        for step in (peak - width, peak + width):
            if 0 <= step <= STEPS and step not in seen:
                seen[step] = score(step)
    return _peak(seen)


def strength_of(step: int) -> float:
    """The L2 strength lambda of a step of the grid; scikit-learn's C is its inverse."""
    return float(10.0 ** (SMALLEST + step / STEPS_PER_DECADE))


def fit_logistic(features_NF: Tensor, truth: Truth, *, classes: int, strength: float, max_iterations: int) -> Fit:
    """Multinomial logistic regression, scikit-learn's L-BFGS in float64; needs samples of two classes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    solver = LogisticRegression(C=1 / strength, max_iter=max_iterations)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        solver.fit(features_NF[truth.rows].double().numpy(), truth.classes.numpy())
    stopped = any(issubclass(w.category, ConvergenceWarning) for w in said)
    return _spread(solver, classes=classes, converged=not stopped)


def first_classes(truth: Truth) -> list[int]:
    """The first class of each sample, by which samples are split."""
    first = torch.full((truth.size,), -1, dtype=torch.int64)
    first.scatter_reduce_(0, truth.rows, truth.classes, "amin", include_self=False)
    found: list[int] = first.tolist()
    return found


def _peak(seen: dict[int, tuple[float, float]]) -> int:
    return max(seen, key=lambda step: (seen[step], step))


def _spread(solver: Any, *, classes: int, converged: bool) -> Fit:
    coefficients, intercepts = solver.coef_, solver.intercept_
    if len(solver.classes_) == 2:  # one row says it for both
        coefficients = np.concatenate([0 * coefficients, coefficients])
        intercepts = np.concatenate([0 * intercepts, intercepts])
    weight = torch.zeros(classes, coefficients.shape[1], dtype=torch.float64)
    bias = torch.full((classes,), -torch.inf, dtype=torch.float64)
    index = torch.from_numpy(solver.classes_)
    weight[index], bias[index] = torch.from_numpy(coefficients), torch.from_numpy(intercepts)
    return Fit(weight=weight, bias=bias, iterations=int(solver.n_iter_.max()), converged=converged)
