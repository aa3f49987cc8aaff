"""The retrieval task: texts found by image and images found by text."""

import torch
from torch import Tensor

from unicl.evaluate.exact import cosines, grid, require_finite, tiles
from unicl.evaluate.job import Job, Plan
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.report import Answer, Fact, Mistake, Result
from unicl.evaluate.retrieval import CUTS, Pairs, Ranks, pair_captions, rank_both_ways
from unicl.evaluate.scoring import retrieval_scores

SHOWN = 3


def cannot_retrieve(plan: Plan) -> str | None:
    """Retrieval needs a text tower and captions of at least two images or two texts."""
    if plan.model.text is None:
        return f"the model was trained with {plan.model.settings.recipe!r} and has no text tower"
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
    vectors = require_finite(job.model.embed_text(texts, view="instances"), what="text embeddings")
    ranks = rank_both_ways(pictures.instances, vectors, pairs=pairs)
    mistakes = {
        "texts": _mistaken_texts(ranks, pictures, texts=texts, vectors_TD=vectors, pairs=pairs, job=job),
        "images": _mistaken_images(ranks, pictures, texts=texts, vectors_TD=vectors, pairs=pairs, job=job),
    }
    left_out = len(job.pictures.samples) - len(index)
    facts: dict[str, Fact] = {
        "images": len(index),
        "distinct texts": len(texts),
        "right pairs": len(pairs.images),
        "recall@1 by chance, image to text": len(pairs.images) / (len(index) * len(texts)),
        "ties": "count against the model (the lowest place)",
        "dimensions read": vectors.shape[1],
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


def _mistaken_texts(
    ranks: Ranks, pictures: Pictures, *, texts: tuple[str, ...], vectors_TD: Tensor, pairs: Pairs, job: Job
) -> tuple[Mistake, ...]:
    worst = _worst(ranks.text_to_image, most=job.options.mistakes)
    mistakes = []
    for row, scores in zip(worst.tolist(), _scores(vectors_TD[worst], pictures.instances), strict=True):
        right = set(pairs.images[pairs.texts == row].tolist())
        answers = [
            Answer(
                text=pictures.samples[i].id, image=pictures.samples[i].image, score=float(scores[i]), right=i in right
            )
            for i in _shown(scores, right)
        ]
        rank = int(ranks.text_to_image[row])
        mistakes.append(
            Mistake(id=f"text {row}", text=texts[row], rank=rank, wanted=answers[0], found=tuple(answers[1:]))
        )
    return tuple(mistakes)


def _mistaken_images(
    ranks: Ranks, pictures: Pictures, *, texts: tuple[str, ...], vectors_TD: Tensor, pairs: Pairs, job: Job
) -> tuple[Mistake, ...]:
    worst = _worst(ranks.image_to_text, most=job.options.mistakes)
    mistakes = []
    for row, scores in zip(worst.tolist(), _scores(pictures.instances[worst], vectors_TD), strict=True):
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
