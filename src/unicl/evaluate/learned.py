"""The tasks that learn from a training part first: the linear probe and the nearest neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.classes import Classes
from unicl.evaluate.classification import classified, unlabelled
from unicl.evaluate.job import Job, Plan
from unicl.evaluate.neighbours import nearest, vote
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.probe import MAX_ITERATIONS, Probe, first_classes, train_probe
from unicl.evaluate.report import Fact, Result, Score
from unicl.evaluate.scoring import class_scores
from unicl.evaluate.split import divisible, patients_of, shared_patients, stratified, told
from unicl.evaluate.zeroshot import Truth, zero_shot

NEIGHBOURS = (1, 5, 20)
FITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Labelled images to learn from and to measure on, with their classes."""

    classes: Classes
    training: Pictures
    training_truth: Truth
    test: Pictures
    test_truth: Truth
    facts: dict[str, Fact]
    notes: tuple[str, ...]


def cannot_learn(plan: Plan) -> str | None:
    """Learning needs labels of two classes, and images that are left to measure on."""
    learnt = plan.samples if plan.training is None else plan.training
    labels = {label for sample in learnt for label in sample.labels}
    if not labels or not any(sample.labels for sample in plan.samples):
        return "the data has no labels" if plan.training is None else "the test or the training data has no labels"
    if len(labels) < 2:
        return f"there is only one class, {min(labels)!r}"
    if plan.training is not None:
        return None
    index, truth = Classes.of(plan.samples, names=plan.options.names).truth(plan.samples)
    patients = patients_of([plan.samples[row] for row in index.tolist()])
    if divisible(first_classes(truth), patients=patients):
        return None
    second = "images of a second patient" if any(patients) else "a second image"
    return f"no class has {second} to measure on; give training data of its own"


def run_probe(job: Job) -> Result:
    """CLIP's linear probe (appendix A.3) on the features before the head."""
    parts = divide(job)
    with bar("linear probe: fits", total=FITS, shown=job.options.progress) as advance:
        probe = train_probe(
            parts.training.features,
            parts.training_truth,
            classes=len(parts.classes),
            generator=torch.Generator().manual_seed(job.options.seed),
            patients=patients_of(parts.training.samples),
            tick=lambda: advance(1),
        )
    scores_NC = probe.fit.scores(parts.test.features)
    return classified(
        "probe",
        zero_shot(scores_NC, parts.test_truth),
        title="Linear probe",
        pictures=parts.test,
        truth=parts.test_truth,
        classes=parts.classes,
        probabilities=lambda rows: scores_NC[rows].softmax(-1),
        options=job.options,
        facts=parts.facts | _probe_facts(probe, width=parts.test.features.shape[1]),
        notes=parts.notes + _probe_notes(probe),
    )


def run_neighbours(job: Job) -> Result:
    """Cosine neighbours, one vote each: on the features before the head, and on the class view if texts taught it."""
    parts = divide(job)
    views = {"features": (parts.test.features, parts.training.features)}
    if job.model.settings.reads_texts:
        views["class view"] = (parts.test.classes, parts.training.classes)
    scores = [
        score for name, (test, bank) in views.items() for score in _neighbour_scores(name, test, bank, parts, job)
    ]
    return Result(
        task="knn",
        title="Nearest neighbours",
        scores=tuple(scores),
        facts={"images": parts.test_truth.size, "classes": len(parts.classes), **parts.facts},
        notes=parts.notes,
    )


def divide(job: Job) -> Division:
    """The given training data, or a stratified part of the data; raises `UserError` for a class never learned."""
    if job.training is None:
        return _divided(job)
    classes = Classes.of([*job.training.samples, *job.pictures.samples], names=job.options.names)
    learnt = {label for sample in job.training.samples for label in sample.labels}
    strange = sorted({label for sample in job.pictures.samples for label in sample.labels} - learnt)
    if strange:
        raise UserError(
            f"label {strange[0]!r} of the test data is not in the training data"
            + (f", nor are {len(strange) - 1} others" if len(strange) > 1 else "")
            + "; add images of it to the training data, or leave it out of the test data"
        )
    notes = _shared(job.training, job.pictures) + shared_patients(job.training.samples, job.pictures.samples)
    return _division(job, classes, training=job.training, test=job.pictures, notes=notes)


def _divided(job: Job) -> Division:
    classes = Classes.of(job.pictures.samples, names=job.options.names)
    index, truth = classes.truth(job.pictures.samples)
    generator = torch.Generator().manual_seed(job.options.seed)
    first = first_classes(truth)
    patients = patients_of([job.pictures.samples[row] for row in index.tolist()])
    train, test = stratified(first, fraction=job.options.test_fraction, generator=generator, patients=patients)
    alone = len(set(first) - {first[row] for row in test.tolist()})
    single = "images of too few patients, which are" if any(patients) else "a single image, which is"
    note = f"classes with {single} learned and not measured: {alone}"
    return _division(
        job,
        classes,
        training=job.pictures.take(index[train]),
        test=job.pictures.take(index[test]),
        notes=(note,) if alone else (),
    )


def _division(job: Job, classes: Classes, *, training: Pictures, test: Pictures, notes: tuple[str, ...]) -> Division:
    learnt, training_truth = classes.truth(training.samples)
    measured, test_truth = classes.truth(test.samples)
    own = training.take(learnt), test.take(measured)
    facts: dict[str, Fact] = {"training images": len(learnt), "split": told(own[0].samples, own[1].samples)}
    return Division(
        classes=classes,
        training=own[0],
        training_truth=training_truth,
        test=own[1],
        test_truth=test_truth,
        facts=facts | unlabelled(job.pictures, classes.truth(job.pictures.samples)[0]),
        notes=notes,
    )


def _shared(training: Pictures, test: Pictures) -> tuple[str, ...]:
    both = {sample.image for sample in training.samples} & {sample.image for sample in test.samples}
    return (
        (f"images that are in the training and in the test data, so that the numbers flatter: {len(both)}",)
        if both
        else ()
    )


def _neighbour_scores(name: str, test: Tensor, bank: Tensor, parts: Division, job: Job) -> list[Score]:
    found = nearest(F.normalize(test, dim=-1), F.normalize(bank, dim=-1), k=max(NEIGHBOURS))
    scores: list[Score] = []
    for k in NEIGHBOURS:
        predicted = vote(found[:, :k], parts.training_truth, classes=len(parts.classes))
        hits = parts.test_truth.contains(predicted).double()
        of_k, _ = class_scores(
            f"knn/{name.replace(' ', '_')}/k{k}",
            {"top-1": hits},
            truth=parts.test_truth,
            classes=parts.classes,
            bootstrap=job.options.bootstrap,
            patients=patients_of(parts.test.samples),
            title=f"{name}, k={k}: ",
        )
        scores += of_k
    return scores


def _probe_facts(probe: Probe, *, width: int) -> dict[str, Fact]:
    return {
        "features": width,
        "L2 strength": probe.strength,
        "strengths tried": len(probe.tried),
        "held out for the search": probe.held_out,
        "iterations": probe.fit.iterations,
        "converged": probe.fit.converged,
    }


def _probe_notes(probe: Probe) -> tuple[str, ...]:
    notes = []
    if not probe.fit.converged:
        notes.append(f"the final fit stopped at {MAX_ITERATIONS} iterations, before its end: the numbers may rise")
    missed = sum(not converged for _, _, converged in probe.tried)
    if missed:
        notes.append(f"{missed} of {len(probe.tried)} fits of the search stopped before their end")
    if not probe.tried:
        notes.append("no class has two training images, so no L2 strength could be searched: it is 1")
    return tuple(notes)
