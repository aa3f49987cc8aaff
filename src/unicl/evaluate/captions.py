"""The retrieval task: texts found by image and images found by text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unicl import compare
from unicl.evaluate.exact import cosines, grid, require_finite, tiles
from unicl.evaluate.job import Job, Plan
from unicl.evaluate.parts import encoded_texts, rank_by_scores
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.report import Answer, Fact, Mistake, Result
from unicl.evaluate.retrieval import CUTS, Pairs, Ranks, pair_captions, rank_both_ways
from unicl.evaluate.scoring import retrieval_scores
from unicl.model import TwoTowers
from unicl.objective.likelihood import writer

SHOWN = 3


def cannot_retrieve(plan: Plan) -> str | None:
    """Retrieval needs a text tower and captions of at least two images or two texts."""
    if not plan.model.settings.reads_texts:
        writes = writer(plan.model.objective.terms.values()) is not None
        instead = " (what it writes is compared with captions by unicl caption MODEL --data DATA)" if writes else ""
        return f"the model was trained with {plan.model.settings.recipe!r} and has no text tower{instead}"
    captioned = [sample.captions for sample in plan.samples if sample.captions]
    if not captioned:
        return "the data has no captions"
    one_text = len(pair_captions(captioned)[0]) == 1
    return "there is only one caption, so nothing to tell apart" if one_text else None


def run_retrieval(job: Job) -> Result:
    """Both directions over all images that have a caption and all distinct captions, in the instance view."""
    index = torch.tensor([row for row, sample in enumerate(job.pictures.samples) if sample.captions])
    pictures = job.pictures.take(index)
    texts, pairs = pair_captions([sample.captions for sample in pictures.samples])
    found = find_both_ways(job.model, pictures, texts=texts, pairs=pairs)
    ranks = found.ranks
    mistakes = {
        "texts": _mistaken_texts(found, pictures, texts=texts, pairs=pairs, most=job.options.mistakes),
        "images": _mistaken_images(found, pictures, texts=texts, pairs=pairs, most=job.options.mistakes),
    }
    left_out = len(job.pictures.samples) - len(index)
    facts: dict[str, Fact] = {
        "images": len(index),
        "distinct texts": len(texts),
        "right pairs": len(pairs.images),
        "recall@1 by chance, image to text": len(pairs.images) / (len(index) * len(texts)),
        "ties": "count against the model (the lowest place)",
        **found.facts,
    }
    if left_out:
        facts["images without a caption, left out"] = left_out
    return Result(
        task="retrieval",
        title="Retrieval",
        scores=retrieval_scores(ranks, pairs=pairs, bootstrap=job.options.bootstrap),
        ranks={
            "image to text": tuple(ranks.image_to_text.tolist()),
            "text to image": tuple(ranks.text_to_image.tolist()),
        },
        mistakes=mistakes,
        facts=facts,
        notes=_trivial(len(index), len(texts)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The ranks, how some texts score all images ``(M, I)`` and some images all texts ``(M, T)``, and what is said."""

    ranks: Ranks
    of_texts: Callable[[Tensor], Tensor]
    of_images: Callable[[Tensor], Tensor]
    facts: dict[str, Fact]


def find_both_ways(model: TwoTowers, pictures: Pictures, *, texts: Sequence[str], pairs: Pairs) -> Found:
    """Texts by image and images by text, as the model compares instances: whole vectors, or more than them."""
    by_parts = pictures.embedding is not None and compare.reads_parts(model, "instances")
    return (_by_parts if by_parts else _by_vectors)(model, pictures, texts, pairs)


def _by_vectors(model: TwoTowers, pictures: Pictures, texts: Sequence[str], pairs: Pairs) -> Found:
    vectors = require_finite(model.embed_text(texts, view="instances"), what="text embeddings")
    return Found(
        ranks=rank_both_ways(pictures.instances, vectors, pairs=pairs),
        of_texts=lambda rows: _scores(vectors[rows], pictures.instances),
        of_images=lambda rows: _scores(pictures.instances[rows], vectors),
        facts={"dimensions read": vectors.shape[1]},
    )


def _by_parts(model: TwoTowers, pictures: Pictures, texts: Sequence[str], pairs: Pairs) -> Found:
    images, encoded = pictures.embedding, encoded_texts(model, texts)
    assert images is not None
    return Found(
        ranks=rank_by_scores(model, images, encoded, pairs=pairs),
        of_texts=lambda rows: compare.scores(model, images, encoded.select(rows), view="instances")[1].T,
        of_images=lambda rows: compare.scores(model, images.select(rows), encoded, view="instances")[0],
        facts={"compared by": compare.how_compared(model, "instances")},
    )


def _mistaken_texts(
    found: Found, pictures: Pictures, *, texts: tuple[str, ...], pairs: Pairs, most: int
) -> tuple[Mistake, ...]:
    ranks = found.ranks
    worst = _worst(ranks.text_to_image, most=most)
    mistakes = []
    for row, scores in zip(worst.tolist(), found.of_texts(worst), strict=True):
        right = set(pairs.images[pairs.texts == row].tolist())
        answers = [
            Answer(
                text=pictures.samples[i].id,
                image=pictures.samples[i].image,
                score=float(scores[i]),
                right=i in right,
            )
            for i in _shown(scores, right)
        ]
        rank = int(ranks.text_to_image[row])
        mistakes.append(
            Mistake(id=f"text {row}", text=texts[row], rank=rank, wanted=answers[0], found=tuple(answers[1:]))
        )
    return tuple(mistakes)


def _mistaken_images(
    found: Found, pictures: Pictures, *, texts: tuple[str, ...], pairs: Pairs, most: int
) -> tuple[Mistake, ...]:
    ranks = found.ranks
    worst = _worst(ranks.image_to_text, most=most)
    mistakes = []
    for row, scores in zip(worst.tolist(), found.of_images(worst), strict=True):
        right = set(pairs.texts[pairs.images == row].tolist())
        answers = [Answer(text=texts[t], score=float(scores[t]), right=t in right) for t in _shown(scores, right)]
        sample, rank = pictures.samples[row], int(ranks.image_to_text[row])
        mistakes.append(
            Mistake(id=sample.id, image=sample.image, rank=rank, wanted=answers[0], found=tuple(answers[1:]))
        )
    return tuple(mistakes)


def _worst(ranks: Tensor, *, most: int) -> Tensor:
    order = ranks.sort(descending=True, stable=True).indices[:most]
    return order[ranks[order] > 1]


def _scores(queries_QD: Tensor, answers_ND: Tensor, *, tile: int = 8192) -> Tensor:
    queries = grid(queries_QD)
    parts = [cosines(queries, grid(answers_ND[rows])).float() for rows in tiles(len(answers_ND), tile=tile)]
    return torch.cat(parts, 1)


def _shown(scores_N: Tensor, right: set[int]) -> list[int]:
    """The best right answer, then the first answers of all."""
    best = max(sorted(right), key=lambda place: float(scores_N[place]))
    return [best, *scores_N.topk(min(SHOWN, len(scores_N))).indices.tolist()]


def _trivial(images: int, texts: int) -> tuple[str, ...]:
    few = [k for k in CUTS if k >= min(images, texts)]
    if not few:
        return ()
    cuts = ", ".join(f"recall@{k}" for k in few)
    return (f"with {images} images and {texts} texts, {cuts} is reached by any model in at least one direction",)
