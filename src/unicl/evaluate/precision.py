"""How many of the first answers are of the query's class: precision at 5, 10, 50 and 100 of images and texts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unicl import compare
from unicl.data.prompts import Prompts, fill, language_of, sentences_for, templates
from unicl.errors import UserError, suggest
from unicl.evaluate.bootstrap import means
from unicl.evaluate.classes import Classes
from unicl.evaluate.classification import without_prompts
from unicl.evaluate.exact import cosines, grid, require_finite, tiles
from unicl.evaluate.job import Job, Plan
from unicl.evaluate.parts import encoded_texts
from unicl.evaluate.pictures import Pictures, embed_pictures
from unicl.evaluate.ranking import CELLS
from unicl.evaluate.report import Fact, Result, Score
from unicl.evaluate.scoring import measured
from unicl.model import View
from unicl.space import Sample

CUTS: Final = (5, 10, 50, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """Q queries of one kind and N answers: the scores of some queries ``(R, N)``, and the classes of both.

    ``shown (Q, C)`` and ``answers (N, C)`` are bool; ``own (Q,)`` is the answer that a query is itself, -1 for none.
    """

    key: str
    title: str
    scores: Callable[[slice], Tensor]
    shown: Tensor
    answers: Tensor
    own: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Texts that ask, with their classes ``(Q, C)``, and the view that they are compared in."""

    texts: list[str]
    shown: Tensor
    view: View
    what: str


def cannot_be_precise(plan: Plan) -> str | None:
    """It takes candidates of two classes, and as many of them as the first cut has."""
    labelled = [sample for sample in plan.samples if sample.labels]
    if not labelled:
        return "the data has no labels"
    classes = Classes.of(plan.samples, names=plan.options.names)
    if len(classes) < 2:
        return f"there is only one class, {classes.labels[0]!r}"
    if len(labelled) <= CUTS[0]:
        return f"there are only {len(labelled)} images to find, and precision@{CUTS[0]} takes more"
    if not plan.model.settings.reads_texts or plan.options.asked:
        return None
    return without_prompts(plan.options.templates, classes)


def run_precision(job: Job) -> Result:
    """Precision@k of ConVIRT's and GLoRIA's retrieval (sections 4.4 and 4.2): candidates are images with one class.

    An answer is right if it has a class of the query. Images ask for images, compared by their features before the
    head (ConVIRT, as remembered) and by embeddings; prompts of the classes, or given sentences, ask for images; and
    images for captions, where they have any. A query is never its own answer; at equal scores wrong answers come first.
    """
    classes = Classes.of(job.pictures.samples, names=job.options.names)
    index, truth = classes.truth(job.pictures.samples)
    pictures, shown_NC = job.pictures.take(index), truth.mask(len(classes))
    parts = [_measured(way, job=job) for way in _ways(job, pictures, shown_NC, classes=classes)]
    facts: dict[str, Fact] = {"candidates": len(index), "classes": len(classes)}
    return Result(
        task="precision",
        title="Precision of the first answers",
        scores=tuple(score for part in parts for score in part.scores),
        facts={
            **facts,
            **{name: fact for part in parts for name, fact in part.facts.items()},
            "right": "an answer with a class of the query",
            "ties": "wrong answers come first",
        },
        notes=tuple(note for part in parts for note in part.notes),
    )


def precision(scores_QN: Tensor, right_QN: Tensor, *, cuts: Sequence[int], own_Q: Tensor | None = None) -> Tensor:
    """``(Q, K)`` float64: the share of right answers among the first of each number of ``cuts``.

    ``own_Q`` is the answer that is the query itself and is left out, -1 for none. Of equal scores the wrong answers
    come first, so that a model that tells nothing apart finds nothing.
    """
    scores, right = scores_QN.double().clone(), right_QN.clone()
    if own_Q is not None:
        asking = (own_Q >= 0).nonzero()[:, 0]
        scores[asking, own_Q[asking]] = -torch.inf
        right[asking, own_Q[asking]] = False
    order = torch.from_numpy(np.lexsort((right.numpy(), -scores.numpy()), axis=-1))
    hits = right.gather(1, order).double().cumsum(1)
    return torch.stack([hits[:, k - 1] / k for k in cuts], 1)


def _measured(way: _Way, *, job: Job) -> Result:
    """The precisions of one kind of query, and what can be expected of them."""
    candidates = len(way.answers) - int(bool((way.own >= 0).any()))
    cuts = [k for k in CUTS if k <= candidates]
    found, there = [], []
    for rows in tiles(len(way.shown), tile=max(1, CELLS // len(way.answers))):
        right_RN = (way.shown[rows].float() @ way.answers.float().T) > 0
        asking = (way.own[rows] >= 0).nonzero()[:, 0]
        right_RN[asking, way.own[rows][asking]] = False
        found.append(precision(way.scores(rows), right_RN, cuts=cuts, own_Q=way.own[rows]))
        there.append(right_RN.sum(1).double())
    found_QK, there_Q = torch.cat(found), torch.cat(there)
    numbers = measured(means(found_QK), samples=len(found_QK), bootstrap=job.options.bootstrap)
    most = float((there_Q.clamp(max=cuts[-1]) / cuts[-1]).mean())
    few = f"{way.title}: no more than {most:.1%} can be reached at {cuts[-1]}, as some classes are smaller"
    left = ", ".join(f"@{k}" for k in CUTS[len(cuts) :])
    short = f"{way.title}: no precision {left}, as there are only {candidates} answers"
    return Result(
        task="precision",
        title=way.title,
        scores=tuple(_score(way, k, number, n=len(found_QK)) for k, number in zip(cuts, numbers, strict=True)),
        facts={
            f"{way.title}, queries": len(found_QK),
            f"{way.title}, precision by chance": float((there_Q / candidates).mean()),
        },
        notes=((few,) if most < 1 else ()) + ((short,) if left else ()),
    )


def _score(way: _Way, k: int, number: tuple[float, float, float], *, n: int) -> Score:
    value, low, high = number
    name = f"{way.title}, precision@{k}"
    return Score(key=f"precision/{way.key}/p{k}", name=name, value=value, low=low, high=high, n=n)


def _ways(job: Job, pictures: Pictures, shown_NC: Tensor, *, classes: Classes) -> Iterator[_Way]:
    asking, shown_QC, own_Q = _images(job, pictures, shown_NC, classes=classes)
    if asking is not None:
        seen = partial(_Way, shown=shown_QC, answers=shown_NC, own=own_Q)
        features = _cosines(asking.features, pictures.features)
        yield seen(key="i2i_features", title="image to image, features", scores=features)
        yield seen(key="i2i", title="image to image", scores=_cosines(asking.instances, pictures.instances))
    if not job.model.settings.reads_texts:
        return
    if (asked := _texts(job, classes)) is not None:
        by_text = _scores(job, pictures, asked.texts, view=asked.view)[1].T
        yield _Way(
            key="t2i",
            title=f"{asked.what} to image",
            scores=by_text.__getitem__,
            shown=asked.shown,
            answers=shown_NC,
            own=torch.full((len(asked.texts),), -1),
        )
    rows, captions = _captions(pictures.samples)
    if asking is not None and len(captions) > CUTS[0]:
        by_image = _scores(job, asking, captions, view="instances")[0]
        nobody = torch.full((len(by_image),), -1)
        yield _Way(
            key="i2t",
            title="image to text",
            scores=by_image.__getitem__,
            shown=shown_QC,
            answers=shown_NC[rows],
            own=nobody,
        )


def _cosines(queries_QD: Tensor, answers_ND: Tensor) -> Callable[[slice], Tensor]:
    answers = grid(F.normalize(answers_ND, dim=-1))
    return lambda rows: cosines(grid(F.normalize(queries_QD[rows], dim=-1)), answers)


def _images(
    job: Job, pictures: Pictures, shown_NC: Tensor, *, classes: Classes
) -> tuple[Pictures | None, Tensor, Tensor]:
    """The images that ask, their classes, and which of the candidates each is: the candidates, if none are given."""
    if not job.options.asked:
        return pictures, shown_NC, torch.arange(len(shown_NC))
    given = [sample for sample in job.options.asked if sample.image is not None and sample.labels]
    if not given:
        return None, shown_NC[:0], torch.zeros(0, dtype=torch.int64)
    asking = embed_pictures(job.model, given, progress=job.options.progress, what="queries")
    place = {sample.image: row for row, sample in enumerate(pictures.samples)}
    own = [place.get(sample.image, -1) for sample in asking.samples]
    return asking, _shown([sample.labels for sample in asking.samples], classes), torch.tensor(own, dtype=torch.int64)


def _texts(job: Job, classes: Classes) -> _Asked | None:
    """The texts that ask: sentences that are given with labels, else every prompt of every class."""
    if job.options.asked:
        given = [(text, one.labels) for one in job.options.asked if one.labels for text in one.captions]
        if not given:
            return None
        shown = _shown([labels for _, labels in given], classes)
        return _Asked(texts=[text for text, _ in given], shown=shown, view="instances", what="sentence")
    prompts: Prompts = job.options.templates or templates(language_of(classes.names))
    said = [
        (fill(sentence, name), row)
        for row, name in enumerate(classes.names)
        for sentence in dict.fromkeys(sentences_for(prompts, name))
    ]
    shown = torch.zeros(len(said), len(classes), dtype=torch.bool)
    shown[torch.arange(len(said)), torch.tensor([row for _, row in said])] = True
    return _Asked(texts=[text for text, _ in said], shown=shown, view="classes", what="prompt")


def _scores(job: Job, pictures: Pictures, texts: Sequence[str], *, view: View) -> tuple[Tensor, Tensor]:
    """``(N, T)`` twice, for finding texts by image and images by text."""
    model = job.model
    if compare.reads_parts(model, view):
        assert pictures.embedding is not None
        by_image, by_text = compare.scores(model, pictures.embedding, encoded_texts(model, texts), view=view)
        return require_finite(by_image, what="images' scores"), require_finite(by_text, what="texts' scores")
    vectors = pictures.classes if view == "classes" else pictures.instances
    found = require_finite(model.embed_text(texts, view=view), what="text embeddings")
    scores = cosines(grid(vectors), grid(found))
    return scores, scores


def _captions(samples: Sequence[Sample]) -> tuple[Tensor, list[str]]:
    """All captions, and the row of the image of each."""
    pairs = [(row, text) for row, sample in enumerate(samples) for text in sample.captions]
    return torch.tensor([row for row, _ in pairs], dtype=torch.int64), [text for _, text in pairs]


def _shown(labels: Sequence[Sequence[str]], classes: Classes) -> Tensor:
    """``(Q, C)`` bool: the classes of queries; raises `UserError` for one that no candidate can have."""
    number: Mapping[str, int] = {label: k for k, label in enumerate(classes.labels)}
    shown = torch.zeros(len(labels), len(classes), dtype=torch.bool)
    for row, label in ((row, label) for row, several in enumerate(labels) for label in several):
        if label not in number:
            raise UserError(
                f"a query has the label {label!r}, which no image of the data has{suggest(label, classes.labels)}; "
                f"their labels are {', '.join(classes.labels[:20])}"
            )
        shown[row, number[label]] = True
    return shown
