"""The four directions of retrieval, i2t, t2i, t2t and i2i, with rated pairs among the right answers (CxC)."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from unicl.evaluate.captions import cannot_retrieve, find_both_ways
from unicl.evaluate.exact import cosines, grid, require_finite
from unicl.evaluate.job import Job, Plan
from unicl.evaluate.naming import numbered
from unicl.evaluate.ranking import Right, rank_among, sharing
from unicl.evaluate.rated import POSITIVE, Kind, positives
from unicl.evaluate.report import Answer, Fact, Mistake, Result
from unicl.evaluate.retrieval import Pairs, pair_captions
from unicl.evaluate.scoring import direction_scores, first_owners
from unicl.space import Sample

Across = Literal["i2t", "t2i"]
WORDS: Final = {"i2t": "image to text", "t2i": "text to image", "t2t": "text to text", "i2i": "image to image"}
SHOWN: Final = 3
Groups = tuple[list[int], list[int]]
"""Entries of items and of the groups that they belong to."""


def run_image_to_text(job: Job) -> Result:
    """Texts found by image, among all distinct captions."""
    return _across(job, "i2t")


def run_text_to_image(job: Job) -> Result:
    """Images found by text."""
    return _across(job, "t2i")


def cannot_find_texts(plan: Plan) -> str | None:
    """Texts find texts where some image has several captions, or people rated texts as alike."""
    reason = cannot_retrieve(plan)
    if reason is not None:
        return reason
    texts, pairs = pair_captions([sample.captions for sample in plan.samples])
    rows, groups = _text_groups(texts, pairs, plan)
    if not _some_shared(rows, groups):
        return "no image has two captions, and no rated pairs of texts were given (--rated)"
    return None


def run_text_to_text(job: Job) -> Result:
    """Captions found by caption: those of the same image, and what people rated as alike; never the query itself."""
    texts, pairs = pair_captions([sample.captions for sample in job.pictures.samples])
    vectors = require_finite(job.model.embed_text(texts, view="instances"), what="text embeddings")
    groups = _text_groups(texts, pairs, job.plan)
    owner = first_owners(pairs, texts=len(texts))
    answers = [Answer(text=text, score=0.0, right=False) for text in texts]
    right = "a caption of the same image" + _or_rated(job.plan, "sts")
    return _within(job, "t2t", vectors, groups=groups, owner=owner, answers=answers, right=right)


def cannot_find_images(plan: Plan) -> str | None:
    """Images find images where some are rated as alike, or else have a label or a caption in common."""
    if not _some_shared(*_image_groups(plan.samples, plan)[0]):
        return "no two images have a label or a caption in common, and no rated pairs of images were given (--rated)"
    return None


def run_image_to_image(job: Job) -> Result:
    """Images found by image, never the query itself: what people rated as alike, else of one label or caption."""
    samples = job.pictures.samples
    groups, right = _image_groups(samples, job.plan)
    answers = [Answer(text=one.id, image=one.image, score=0.0, right=False) for one in samples]
    owner = torch.arange(len(samples))
    return _within(job, "i2i", job.pictures.instances, groups=groups, owner=owner, answers=answers, right=right)


def _across(job: Job, way: Across) -> Result:
    index = torch.tensor([row for row, sample in enumerate(job.pictures.samples) if sample.captions])
    pictures = job.pictures.take(index)
    texts, pairs = pair_captions([sample.captions for sample in pictures.samples])
    rated = _rated_pairs(texts, pictures.samples, job.plan)
    pairs = _joined(pairs, rated)
    found = find_both_ways(job.model, pictures, texts=texts, pairs=pairs)
    ranks = found.ranks.image_to_text if way == "i2t" else found.ranks.text_to_image
    size = len(pictures.samples)
    owner = torch.arange(size) if way == "i2t" else first_owners(pairs, texts=len(texts))
    right = ("an own caption" if way == "i2t" else "an image whose caption it is") + _or_rated(job.plan, "sits")
    facts: dict[str, Fact] = {"images": size, "distinct texts": len(texts), "rated pairs among the right": len(rated)}
    return Result(
        task=way,
        title=WORDS[way].capitalize(),
        scores=direction_scores(ranks, key=way, title=WORDS[way], owner=owner, bootstrap=job.options.bootstrap),
        ranks={WORDS[way]: tuple(ranks.tolist())},
        facts=facts | found.facts | _definitions(right),
    )


def _within(
    job: Job,
    way: str,
    vectors: Tensor,
    *,
    groups: Groups,
    owner: Tensor,
    answers: Sequence[Answer],
    right: str,
) -> Result:
    relation = sharing(*(torch.tensor(each, dtype=torch.int64) for each in groups), size=len(vectors))
    ranks = rank_among(vectors, vectors, right=relation, left_out_Q=torch.arange(len(vectors)))
    asked = int((ranks > 0).sum())
    facts: dict[str, Fact] = {
        "queries": asked,
        "queries without a right answer, not asked": len(ranks) - asked,
        "searched": f"{len(ranks) - 1:,} (all but the query itself)",
        "dimensions read": vectors.shape[1],
    }
    wrong = _mistakes(vectors, ranks, relation, answers=answers, most=job.options.mistakes)
    return Result(
        task=way,
        title=WORDS[way].capitalize(),
        scores=direction_scores(ranks, key=way, title=WORDS[way], owner=owner, bootstrap=job.options.bootstrap),
        ranks={WORDS[way]: tuple(ranks.tolist())},
        mistakes={way: wrong},
        facts=facts | _definitions(right),
    )


def _mistakes(
    vectors: Tensor, ranks: Tensor, relation: Right, *, answers: Sequence[Answer], most: int
) -> tuple[Mistake, ...]:
    order = ranks.sort(descending=True, stable=True).indices[:most]
    mistakes = []
    for row in order[ranks[order] > 1].tolist():
        scores = cosines(grid(vectors[row : row + 1]), grid(vectors))[0]
        scores[row] = -torch.inf
        right = relation(slice(row, row + 1))[0]
        best = int(scores.masked_fill(~right, -torch.inf).argmax())
        wanted, *found = (
            Answer(text=answers[i].text, image=answers[i].image, score=float(scores[i]), right=bool(right[i]))
            for i in (best, *scores.topk(min(SHOWN, len(scores) - 1)).indices.tolist())
        )
        asked = answers[row]
        text = "" if asked.image is not None else asked.text
        mistakes.append(
            Mistake(
                id=asked.text, text=text, image=asked.image, rank=int(ranks[row]), wanted=wanted, found=tuple(found)
            )
        )
    return tuple(mistakes)


def _text_groups(texts: Sequence[str], pairs: Pairs, plan: Plan) -> Groups:
    """Captions of an image are a group, and so are two texts that people rated as alike."""
    place = {text: row for row, text in enumerate(texts)}
    rows, groups = pairs.texts.tolist(), pairs.images.tolist()
    return _with_pairs(rows, groups, positives(plan.options.rated, "sts", positive=plan.options.positive), place)


def _image_groups(samples: Sequence[Sample], plan: Plan) -> tuple[Groups, str]:
    """The groups of images, and in words what is right: by rating, else by label, else by caption."""
    place = {sample.id: row for row, sample in enumerate(samples)}
    rated = positives(plan.options.rated, "sis", positive=plan.options.positive)
    if rated:
        return _with_pairs([], [], rated, place), "an image that" + _or_rated(plan, "sis").removeprefix(" or one that")
    labels = [(row, label) for row, sample in enumerate(samples) for label in sample.labels]
    if labels:
        return ([row for row, _ in labels], numbered([label for _, label in labels])[1].tolist()), "an equal label"
    _, pairs = pair_captions([sample.captions for sample in samples])
    return (pairs.images.tolist(), pairs.texts.tolist()), "an equal caption"


def _with_pairs(
    rows: list[int], groups: list[int], pairs: Sequence[tuple[str, str]], place: Mapping[str, int]
) -> Groups:
    known = [(place[a], place[b]) for a, b in pairs if a in place and b in place]
    first = max(groups, default=-1) + 1
    numbers = [first + number for number in range(len(known)) for _ in range(2)]
    return [*rows, *(one for pair in known for one in pair)], [*groups, *numbers]


def _rated_pairs(texts: Sequence[str], samples: Sequence[Sample], plan: Plan) -> list[tuple[int, int]]:
    images = {sample.id: row for row, sample in enumerate(samples)}
    place = {text: row for row, text in enumerate(texts)}
    pairs = positives(plan.options.rated, "sits", positive=plan.options.positive)
    return [(images[image], place[text]) for image, text in pairs if image in images and text in place]


def _joined(pairs: Pairs, more: Sequence[tuple[int, int]]) -> Pairs:
    own = list(zip(pairs.images.tolist(), pairs.texts.tolist(), strict=True))
    entries = torch.tensor(list(dict.fromkeys([*own, *more])), dtype=torch.int64).view(-1, 2)
    return Pairs(images=entries[:, 0].contiguous(), texts=entries[:, 1].contiguous())


def _some_shared(rows: Sequence[int], groups: Sequence[int]) -> bool:
    first: dict[int, int] = {}
    return any(first.setdefault(group, row) != row for row, group in zip(rows, groups, strict=True))


def _or_rated(plan: Plan, kind: Kind) -> str:
    if not any(table.kind == kind for table in plan.options.rated):
        return ""
    floor = POSITIVE[kind] if plan.options.positive is None else plan.options.positive
    return f" or one that people rated {floor:g} or higher"


def _definitions(right: str) -> dict[str, Fact]:
    return {
        "right": right,
        "recall@k": "share of the queries with a right answer among the first k",
        "ties": "count against the model (the lowest place)",
    }
