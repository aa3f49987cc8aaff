"""One linear support vector machine a class on frozen features: the protocol of VOC07 (VirTex, section 4.1)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unicl.data.subset import together
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.bootstrap import Statistic
from unicl.evaluate.job import Job, Plan
from unicl.evaluate.known import Known
from unicl.evaluate.learned import cannot_learn, divide
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.report import Fact, Result, Score
from unicl.evaluate.scoring import measured
from unicl.evaluate.split import divisible, patients_of, shared_patients, stratified, told
from unicl.space import Sample

COSTS: Final = (0.01, 0.1, 1.0, 10.0)
FOLDS: Final = 3
MAX_ITERATIONS: Final = 2000
LISTED: Final = 40
"""Of no more classes than these, each one's precision is a number of the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The score of a class is ``features @ weight + bias``, float64; ``cost`` is scikit-learn's C."""

    weight: Tensor
    bias: float
    cost: float
    converged: bool


def cannot_separate(plan: Plan) -> str | None:
    """It takes labels of two classes, or a finding that some images have and some have not, in both parts."""
    if not _told(plan.samples):
        return cannot_learn(plan)
    if plan.training is not None and not _told(plan.training):
        return "the training data has no findings"
    if not _both(plan.samples):
        return "there is no finding that some of the images have and others do not"
    told_of = [sample for sample in plan.samples if sample.findings]
    if plan.training is None and not divisible([0] * len(told_of), patients=patients_of(told_of)):
        return (
            f"its findings are all of one {'patient' if told_of[0].patient else 'image'}; give training data of its own"
        )
    return None


def run_svm(job: Job) -> Result:
    """The mean over the classes of the average precision of each one's machine.

    What is uncertain (VOC's "difficult") is a no in training, as in the released code, and not asked for in the test.
    """
    parts = _parts(job)
    learnt, asked = (F.normalize(part.features.double(), dim=1) for part in (parts.training, parts.test))
    patients, machines = patients_of(parts.training.samples), list[Machine]()
    with bar("svm: classes", total=len(parts.names), shown=job.options.progress) as advance:
        for column in range(len(parts.names)):
            yes_N = parts.learnt.yes[:, column]
            machines.append(train_machine(learnt, yes_N, patients=patients, seed=job.options.seed))
            advance(1)
    scores_NC = torch.stack([asked @ machine.weight + machine.bias for machine in machines], 1)
    costs: dict[str, Fact] = {
        f"classes at C = {cost:g}": sum(machine.cost == cost for machine in machines) for cost in COSTS
    }
    return Result(
        task="svm",
        title="Linear SVM for each class",
        scores=_scores(scores_NC, parts, job),
        facts={
            "training images": len(learnt),
            "images": len(asked),
            "split": told(parts.training.samples, parts.test.samples),
            "classes": len(parts.names),
            "features": learnt.shape[1],
            **costs,
        },
        notes=parts.notes + _notes(machines),
    )


def train_machine(features_NF: Tensor, yes_N: Tensor, *, seed: int, patients: Sequence[str] = ()) -> Machine:
    """The machine of one class: squared hinge, L2, a yes counts twice; C by the mean precision of three folds.

    Folds are scikit-learn's stratified ones, in the order of the data, with ``patients`` its stratified ones of groups;
    where too few images have the class, or have it not, for two folds, C is 1. Of equally good C the smallest.
    Raises ValueError if all images have it, or none.
    """
    from sklearn.model_selection import cross_val_score

    features, signs = features_NF.numpy(), (2 * yes_N.long() - 1).numpy()
    parts = folds(signs, patients)
    cost, best = 1.0, -1.0
    for tried in COSTS if parts else ():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = cross_val_score(_solver(tried, seed), features, signs, cv=parts, scoring="average_precision")
        if found.mean() > best:
            cost, best = tried, float(found.mean())
    solver = _solver(cost, seed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        solver.fit(features, signs)
    return Machine(
        weight=torch.from_numpy(solver.coef_[0]).double(),
        bias=float(solver.intercept_[0]),
        cost=cost,
        converged=not any("converge" in str(each.message) for each in said),
    )


def precision_statistic(scores_NC: Tensor, known: Known) -> Statistic:
    """The mean average precision, then that of each class, of samples that are drawn again.

    The mean over the yeses of the precision at their score (scikit-learn's average_precision_score); NaN for a class
    that no image has, and the mean is over the others.
    """
    columns = [_column(scores_NC[:, c], known.yes[:, c], known.asked[:, c]) for c in range(scores_NC.shape[1])]

    def statistic(weights_RN: Tensor) -> Tensor:
        each_RC = torch.stack([column(weights_RN) for column in columns], 1)
        return torch.cat([each_RC.nanmean(1, keepdim=True), each_RC], 1)

    return statistic


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What is learned from and what is measured on, with what is known of the classes ``names``."""

    names: tuple[str, ...]
    training: Pictures
    learnt: Known
    test: Pictures
    asked: Known
    notes: tuple[str, ...]


def _parts(job: Job) -> _Parts:
    if not _told(job.pictures.samples):
        return _of_labels(job)
    test = job.pictures.take(_rows(job.pictures.samples))
    if job.training is not None:
        training = job.training.take(_rows(job.training.samples))
    else:
        generator = torch.Generator().manual_seed(job.options.seed)
        rows = stratified(
            [0] * len(test.samples),
            fraction=job.options.test_fraction,
            generator=generator,
            patients=patients_of(test.samples),
        )
        training, test = (test.take(part) for part in rows)
    every = dict.fromkeys(name for sample in (*training.samples, *test.samples) for name, _ in sample.findings)
    names = tuple(every)
    learnt = Known.of(training.samples, names, uncertain="absent")
    asked = Known.of(test.samples, names)
    both = learnt.yes.any(0) & (~learnt.yes).any(0) & (asked.yes & asked.asked).any(0)
    left = [name for name, kept in zip(names, both.tolist(), strict=True) if not kept]
    if len(left) == len(names):
        raise UserError(
            f"svm: none of the {len(names)} findings is there in some of the {len(training.samples):,} images to learn "
            f"from, missing in others, and there in one of the {len(test.samples):,} to measure on; give more data, or "
            "training data of its own"
        )
    notes = shared_patients(training.samples, test.samples)
    return _Parts(
        names=tuple(name for name, kept in zip(names, both.tolist(), strict=True) if kept),
        training=training,
        learnt=Known(yes=learnt.yes[:, both], asked=learnt.asked[:, both]),
        test=test,
        asked=Known(yes=asked.yes[:, both], asked=asked.asked[:, both]),
        notes=(*notes, f"left out, since no image of a part has them, or all have: {', '.join(left)}")
        if left
        else notes,
    )


def _of_labels(job: Job) -> _Parts:
    parts = divide(job)
    learnt, asked = (truth.mask(len(parts.classes)) for truth in (parts.training_truth, parts.test_truth))
    both = learnt.any(0) & (~learnt).any(0) & asked.any(0)
    names = tuple(name for name, kept in zip(parts.classes.names, both.tolist(), strict=True) if kept)
    return _Parts(
        names=names,
        training=parts.training,
        learnt=Known(yes=learnt[:, both], asked=torch.ones_like(learnt[:, both])),
        test=parts.test,
        asked=Known(yes=asked[:, both], asked=torch.ones_like(asked[:, both])),
        notes=parts.notes,
    )


def _scores(scores_NC: Tensor, parts: _Parts, job: Job) -> tuple[Score, ...]:
    statistic = precision_statistic(scores_NC, parts.asked)
    patients = patients_of(parts.test.samples)
    numbers = measured(statistic, samples=len(scores_NC), bootstrap=job.options.bootstrap, patients=patients)
    own = parts.names if len(parts.names) <= LISTED else ()
    named = [("svm/map", "mean average precision"), *((f"svm/ap/{name}", name) for name in own)]
    sizes = [len(scores_NC), *parts.asked.asked.sum(0).tolist()]
    return tuple(
        Score(key=key, name=name, value=value, low=low, high=high, n=n)
        for (key, name), (value, low, high), n in zip(named, numbers, sizes, strict=False)
    )


def _notes(machines: Sequence[Machine]) -> tuple[str, ...]:
    stopped = sum(not machine.converged for machine in machines)
    return (f"{stopped} of {len(machines)} machines stopped at {MAX_ITERATIONS} iterations",) if stopped else ()


def _solver(cost: float, seed: int) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(
        C=cost,
        penalty="l2",
        loss="squared_hinge",
        dual=True,
        class_weight={1: 2, -1: 1},
        max_iter=MAX_ITERATIONS,
        random_state=seed,
    )


def folds(signs: Any, patients: Sequence[str]) -> list[tuple[Any, Any]]:
    """Rows to learn from and to ask for, fold by fold: those of which a machine can learn; none if too few."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    size = min(FOLDS, int((signs > 0).sum()), int((signs < 0).sum()))
    if size < 2:
        return []
    if not any(patients):
        return list(StratifiedKFold(size).split(signs, signs))
    numbers = np.zeros(len(signs), dtype=np.int64)
    for number, rows in enumerate(together(patients)):
        numbers[rows] = number
    found = StratifiedGroupKFold(size).split(signs, signs, numbers)
    return [(learnt, asked) for learnt, asked in found if len(set(signs[learnt])) == 2 and (signs[asked] > 0).any()]


def _told(samples: Sequence[Sample]) -> bool:
    return any(sample.findings for sample in samples)


def _both(samples: Sequence[Sample]) -> bool:
    names = tuple(dict.fromkeys(name for sample in samples for name, _ in sample.findings))
    known = Known.of(samples, names)
    return bool(((known.yes & known.asked).any(0) & (~known.yes & known.asked).any(0)).any())


def _rows(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([row for row, sample in enumerate(samples) if sample.findings], dtype=torch.int64)


def _column(scores: Tensor, yes: Tensor, asked: Tensor) -> Statistic:
    rows = asked.nonzero()[:, 0]
    values, place = torch.unique(-scores[rows], return_inverse=True)
    there = yes[rows]

    def statistic(weights_RN: Tensor) -> Tensor:
        own, none = weights_RN[:, rows], torch.zeros(len(weights_RN), len(values), dtype=torch.float64)
        right = none.index_add(1, place[there], own[:, there])
        every = none.index_add(1, place, own).cumsum(1)
        # A score that a resample holds no time has no precision, and no share in the mean.
        precision = right.cumsum(1) / every.clamp(min=1)
        return (right * precision).sum(1) / right.sum(1)

    return statistic
