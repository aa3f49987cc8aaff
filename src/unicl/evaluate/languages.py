"""The languages task: retrieval in each language of the captions, and the mean over them (ALIGN, section 8)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unicl.data.sources import Source, load_as
from unicl.data.spec import Spec, parse
from unicl.errors import UserError
from unicl.evaluate.bootstrap import Statistic
from unicl.evaluate.captions import find_both_ways
from unicl.evaluate.job import Job, Plan
from unicl.evaluate.pictures import distinct_images
from unicl.evaluate.report import Fact, Result, Score
from unicl.evaluate.retrieval import CUTS, pair_captions
from unicl.evaluate.scoring import both_ways, measured
from unicl.space import ImageSource, Sample

Captions = Mapping[str, tuple[Sample, ...]]
"""Language to the samples with their captions in it."""

NAMES = (
    "mean recall",
    *(f"image to text, recall@{k}" for k in CUTS),
    *(f"text to image, recall@{k}" for k in CUTS),
)
KEYS = ("mean_recall", *(f"image_to_text/r{k}" for k in CUTS), *(f"text_to_image/r{k}" for k in CUTS))
SEEN = (0, 1, 2, 3, 6, 7, 8)
"""Where these numbers stand in `both_ways`, which gives reciprocal and median ranks too."""


def read_languages(data: Sequence[str], columns: str) -> Captions:
    """The captions of sources by language: from a column that names it in each row, or a column for each, as en,de,fr.

    Raises `UserError` for a column that is not there.
    """
    names = columns.split(",")
    found: dict[str, list[Source]] = {}
    for spec in map(parse, data):
        for language, source in _of_column(spec, columns) if len(names) == 1 else _of_columns(spec, names):
            found.setdefault(language, []).append(source)
    return {language: distinct_images(found[language]) for language in found}


def cannot_compare_languages(plan: Plan) -> str | None:
    """Languages need captions by language and a text tower."""
    if not plan.model.settings.reads_texts:
        return f"the model was trained with {plan.model.settings.recipe!r} and has no text tower"
    return None if plan.options.languages else "no column of languages was given (--language)"


def run_languages(job: Job) -> Result:
    """Both directions in each language among its own images and captions, in the instance view."""
    place = {sample.image: row for row, sample in enumerate(job.pictures.samples)}
    images, statistics, sizes = len(place), [], []
    for language, samples in (job.options.languages or {}).items():
        statistic, size = _measure(job, language, samples, place=place)
        statistics.append(statistic)
        sizes.append(size)

    def together(weights_RN: Tensor) -> Tensor:
        found = torch.stack([statistic(weights_RN)[:, list(SEEN)] for statistic in statistics], 1)
        return torch.cat([found[:, :, 0].mean(1, keepdim=True), found.flatten(1)], 1)

    numbers = measured(together, samples=images, bootstrap=job.options.bootstrap)
    labels = [("languages/mean_recall", "mean over the languages, mean recall")]
    counts = [sum(sum(size) for size in sizes)]
    for language, (pictures, texts) in zip(job.options.languages or {}, sizes, strict=True):
        labels += [(f"languages/{language}/{k}", f"{language}: {n}") for k, n in zip(KEYS, NAMES, strict=True)]
        counts += [pictures + texts, *[pictures] * len(CUTS), *[texts] * len(CUTS)]
    scores = [
        Score(key=key, name=name, value=value, low=low, high=high, n=n)
        for (key, name), (value, low, high), n in zip(labels, numbers, counts, strict=True)
    ]
    facts: dict[str, Fact] = {
        "languages": len(sizes),
        **{f"{language}, images and texts": f"{i:,} and {t:,}" for language, (i, t) in _named(job, sizes)},
        "mean recall": "mean of recall@1, 5 and 10 in both directions",
        "recall@k": "share of the queries with a right answer among the first k, within the language",
        "ties": "count against the model (the lowest place)",
    }
    return Result(task="languages", title="Retrieval by language", scores=tuple(scores), facts=facts)


def _measure(
    job: Job, language: str, samples: Sequence[Sample], *, place: Mapping[ImageSource | None, int]
) -> tuple[Statistic, tuple[int, int]]:
    """The numbers of one language for resampled images, and how many images and texts it has."""
    own = [(place[s.image], s.captions) for s in samples if s.captions and s.image in place]
    texts, pairs = pair_captions([captions for _, captions in own])
    if len(texts) < 2:
        raise UserError(
            f"the language {language!r} has {len(texts)} captions of images that can be read; retrieval needs two at "
            "least: leave it out, or give more data"
        )
    rows = torch.tensor([row for row, _ in own])
    ranks = find_both_ways(job.model, job.pictures.take(rows), texts=texts, pairs=pairs).ranks
    return both_ways(ranks, pairs=pairs, rows=rows, samples=len(place)), (len(own), len(texts))


def _named(job: Job, sizes: Sequence[tuple[int, int]]) -> list[tuple[str, tuple[int, int]]]:
    return list(zip(job.options.languages or {}, sizes, strict=True))


def _of_column(spec: Spec, column: str) -> list[tuple[str, Source]]:
    """The sources of each language that a column names."""
    rows = load_as(replace(spec, image="", text="", label=column, names=None)).samples
    languages = dict.fromkeys(label for row in rows for label in row.labels)
    return [(language, load_as(replace(spec, where=(*spec.where, (column, language))))) for language in languages]


def _of_columns(spec: Spec, columns: Sequence[str]) -> list[tuple[str, Source]]:
    """The sources of each column of captions."""
    return [(column, load_as(replace(spec, text=column))) for column in columns]
