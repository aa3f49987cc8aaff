"""Outcomes of queries to numbers with intervals, shared by the tasks."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from unicl.data.subset import together as units_of
from unicl.evaluate.bootstrap import Bootstrap, Statistic, by_unit, grouped_means, means, medians, ratios, together
from unicl.evaluate.classes import Classes
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.report import Answer, ClassScore, Confused, Mistake, Score, Unit
from unicl.evaluate.retrieval import CUTS, Pairs, Ranks
from unicl.evaluate.zeroshot import Outcomes, Truth, confusion

Numbers = list[tuple[float, float, float]]


def measured(statistic: Statistic, *, samples: int, bootstrap: Bootstrap, patients: Sequence[str] = ()) -> Numbers:
    """Each number of a statistic on the samples as they are, with both ends of its interval.

    With ``patients``, one a sample and "" for nobody known, patients are drawn again, so that the images of one are not
    taken for independent.
    """
    if any(patients):
        statistic, samples = by_unit(statistic, units_of(patients))
    values = statistic(torch.ones(1, samples, dtype=torch.float64))[0]
    low, high = bootstrap.bounds(statistic, samples=samples)
    return list(zip(values.tolist(), low.tolist(), high.tolist(), strict=True))


def class_scores(
    task: str,
    hits: Mapping[str, Tensor],
    *,
    truth: Truth,
    classes: Classes,
    bootstrap: Bootstrap,
    patients: Sequence[str] = (),
    title: str = "",
) -> tuple[tuple[Score, ...], tuple[ClassScore, ...]]:
    """Accuracies by name of the outcomes ``hits (N,)``, the mean per class and each class of the first of them.

    ``title`` stands before the names that people read.
    """
    first = next(iter(hits.values()))
    of_class = grouped_means(first[truth.rows], samples_E=truth.rows, groups_E=truth.classes, groups=len(classes))
    statistic = together(means(torch.stack(list(hits.values()), 1)), of_class)
    numbers = measured(statistic, samples=truth.size, bootstrap=bootstrap, patients=patients)
    names = (*hits, "mean per class")
    scores = [
        _score(f"{task}/{_key(name)}", title + name, number, n=truth.size)
        for name, number in zip(names, numbers, strict=False)
    ]
    sizes = torch.bincount(truth.classes, minlength=len(classes)).tolist()
    found = zip(classes.labels, classes.names, numbers[len(names) :], sizes, strict=True)
    return tuple(scores), tuple(
        ClassScore(label=label, name=name, value=number[0], low=number[1], high=number[2], n=n)
        for label, name, number, n in found
        if n
    )


def confusions(outcomes: Outcomes, *, classes: Classes) -> tuple[Confused, ...]:
    """How often each class was taken for each other; a sample with several classes counts in its nearest one."""
    entries = confusion(outcomes.nearest, outcomes.predicted, classes=len(classes)).tolist()
    return tuple(Confused(true=classes.names[t], predicted=classes.names[p], count=n) for t, p, n in entries)


def class_mistakes(
    outcomes: Outcomes,
    pictures: Pictures,
    *,
    truth: Truth,
    classes: Classes,
    probabilities: Callable[[Tensor], Tensor],
    most: int,
) -> tuple[Mistake, ...]:
    """The surest wrong predictions; ``probabilities`` gives ``(M, C)`` for the samples at an index ``(M,)``."""
    wrong = (outcomes.ranks > 1).nonzero()[:, 0]
    worst = wrong[outcomes.margins[wrong].sort(descending=True, stable=True).indices[:most]]
    mistakes = []
    for row, shares, own in zip(
        worst.tolist(), probabilities(worst), truth.take(worst).mask(len(classes)), strict=True
    ):
        order = shares.sort(descending=True, stable=True).indices.tolist()
        answers = [Answer(text=classes.names[c], score=float(shares[c]), right=bool(own[c])) for c in order]
        wanted = next(answer for answer in answers if answer.right)
        sample, rank = pictures.samples[row], int(outcomes.ranks[row])
        mistakes.append(Mistake(id=sample.id, image=sample.image, rank=rank, wanted=wanted, found=tuple(answers[:3])))
    return tuple(mistakes)


def retrieval_scores(ranks: Ranks, *, pairs: Pairs, bootstrap: Bootstrap) -> tuple[Score, ...]:
    """Recalls, reciprocal and median ranks both ways and the mean recall.

    Images are drawn again, and each text follows the first image that it belongs to, so that the captions of one
    image are not taken for independent.
    """
    images, texts = len(ranks.image_to_text), len(ranks.text_to_image)
    statistic = both_ways(ranks, pairs=pairs, rows=torch.arange(images), samples=images)
    numbers = measured(statistic, samples=images, bootstrap=bootstrap)
    sizes = [images + texts, *[images] * 5, *[texts] * 5]
    labels: list[tuple[str, str, Unit]] = [
        ("mean_recall", "mean recall", "percent"),
        *_labels("image to text", key="image_to_text"),
        *_labels("text to image", key="text_to_image"),
    ]
    return tuple(
        _score(f"retrieval/{key}", name, number, n=n, unit=unit)
        for (key, name, unit), number, n in zip(labels, numbers, sizes, strict=True)
    )


def both_ways(ranks: Ranks, *, pairs: Pairs, rows: Tensor, samples: int) -> Statistic:
    """The mean recall, then recalls, reciprocal and median rank of each direction, for images drawn again.

    ``rows (I,)`` says which of the samples each image is; a text belongs to the first of its images.
    """
    owner = rows[first_owners(pairs, texts=len(ranks.text_to_image))]
    both = together(
        _directed(ranks.image_to_text, owner=rows, images=samples),
        _directed(ranks.text_to_image, owner=owner, images=samples),
    )

    def statistic(weights_RN: Tensor) -> Tensor:
        found = both(weights_RN)
        recalls = torch.cat([found[:, : len(CUTS)], found[:, 5 : 5 + len(CUTS)]], 1)
        return torch.cat([recalls.mean(1, keepdim=True), found], 1)

    return statistic


def first_owners(pairs: Pairs, *, texts: int) -> Tensor:
    """``(T,)`` the first image that each text belongs to."""
    last = int(pairs.images.max()) if len(pairs.images) else 0
    return torch.full((texts,), last, dtype=torch.int64).scatter_reduce(0, pairs.texts, pairs.images, "amin")


def direction_scores(ranks: Tensor, *, key: str, title: str, owner: Tensor, bootstrap: Bootstrap) -> tuple[Score, ...]:
    """Recalls, reciprocal and median rank of the queries that have an answer.

    ``owner`` is the image of each query: images are drawn again, each with all its queries.
    """
    asked = ranks > 0
    samples = int(owner.max()) + 1
    statistic = _directed(ranks[asked], owner=owner[asked], images=samples)
    numbers = measured(statistic, samples=samples, bootstrap=bootstrap)
    return tuple(
        _score(name, label, number, n=int(asked.sum()), unit=unit)
        for (name, label, unit), number in zip(_labels(title, key=key), numbers, strict=True)
    )


def _directed(ranks: Tensor, *, owner: Tensor, images: int) -> Statistic:
    values = torch.stack([*((ranks <= k).double() for k in CUTS), ranks.double().reciprocal()], 1)
    sums = torch.zeros(images, values.shape[1], dtype=torch.float64).index_add(0, owner, values)
    counts = torch.zeros(images, 1, dtype=torch.float64).index_add(0, owner, torch.ones(len(owner), 1).double())
    return together(ratios(sums, counts_NS=counts), medians(ranks, samples_Q=owner))


def _labels(direction: str, *, key: str) -> list[tuple[str, str, Unit]]:
    recalls: list[tuple[str, str, Unit]] = [(f"{key}/r{k}", f"{direction}, recall@{k}", "percent") for k in CUTS]
    return [
        *recalls,
        (f"{key}/mrr", f"{direction}, mean reciprocal rank", "fraction"),
        (f"{key}/median_rank", f"{direction}, median rank", "rank"),
    ]


def _score(key: str, name: str, number: tuple[float, float, float], *, n: int, unit: Unit = "percent") -> Score:
    return Score(key=key, name=name, value=number[0], low=number[1], high=number[2], n=n, unit=unit)


def _key(name: str) -> str:
    return name.replace("-", "").replace(" ", "_")
