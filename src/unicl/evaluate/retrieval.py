"""Finding texts by image and images by text, when both may have several right answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unicl.data.keys import text_key
from unicl.evaluate.exact import grid, tiles

CUTS = (1, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Which texts belong to which images: ``images (E,)`` and ``texts (E,)`` int64, each pair once."""

    images: Tensor
    texts: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The rank, from 1, of the best right answer of each query; 0 for a query that has none.

    ``image_to_text (I,)`` and ``text_to_image (T,)`` int64.
    """

    image_to_text: Tensor
    text_to_image: Tensor


def pair_captions(captions: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], Pairs]:
    """The distinct texts of images' captions, and who has which.

    Texts with equal keys (`unicl.data.keys.text_key`) are one text: asked for once, and right for all their images.
    """
    texts: dict[int, tuple[int, str]] = {}
    pairs: dict[tuple[int, int], None] = {}
    for image, several in enumerate(captions):
        for caption in several:
            number, _ = texts.setdefault(text_key(caption), (len(texts), caption))
            pairs[image, number] = None
    entries = torch.tensor(list(pairs), dtype=torch.int64).view(-1, 2)
    return tuple(text for _, text in texts.values()), Pairs(images=entries[:, 0], texts=entries[:, 1])


def rank_both_ways(images_ID: Tensor, texts_TD: Tensor, *, pairs: Pairs, tile: int = 2048) -> Ranks:
    """Ranks of all queries of both directions, from unit vectors, with memory for one square tile of scores.

    Pessimistic: a wrong answer that scores the same stands before the right one, so a collapsed model finds nothing.
    Other right answers of a query do not count against it. Scores are exact (`unicl.evaluate.exact.grid`).
    """
    own = _own_scores(images_ID, texts_TD, pairs=pairs, tile=tile)
    best_I = best_right(own, pairs.images, size=len(images_ID))
    best_T = best_right(own, pairs.texts, size=len(texts_TD))
    # What is not right is what scores at least as much, less the right answers that do.
    ahead_I = torch.zeros_like(best_I).index_add(0, pairs.images, -(own >= best_I[pairs.images]).double())
    ahead_T = torch.zeros_like(best_T).index_add(0, pairs.texts, -(own >= best_T[pairs.texts]).double())
    for rows in tiles(len(images_ID), tile=tile):
        images = grid(images_ID[rows])
        for columns in tiles(len(texts_TD), tile=tile):
            scores_IT = images @ grid(texts_TD[columns]).T
            ahead_I[rows] += (scores_IT >= best_I[rows, None]).sum(1)
            ahead_T[columns] += (scores_IT >= best_T[columns]).sum(0)
    return Ranks(image_to_text=_ranks(ahead_I, best_I), text_to_image=_ranks(ahead_T, best_T))


def best_right(own_E: Tensor, owners_E: Tensor, *, size: int) -> Tensor:
    """``(size,)`` the best score of each query's right answers, from those of all pairs; -inf without one."""
    lowest = torch.full((size,), -torch.inf, dtype=torch.float64, device=own_E.device)
    return lowest.scatter_reduce(0, owners_E, own_E.double(), "amax")


def recall(ranks: Tensor, k: int) -> float:
    """The share of the queries that have a right answer among the first ``k``."""
    return float((asked(ranks) <= k).double().mean())


def mean_reciprocal_rank(ranks: Tensor) -> float:
    """The mean of 1 / rank."""
    return float(asked(ranks).double().reciprocal().mean())


def median_rank(ranks: Tensor) -> float:
    """The rank in the middle; of an even number, the mean of the two."""
    ordered = asked(ranks).sort().values
    size = len(ordered)
    return float(ordered[[(size - 1) // 2, size // 2]].double().mean()) if size else math.nan


def mean_recall(ranks: Ranks) -> float:
    """The mean of the six recalls: at 1, 5 and 10, both ways."""
    both = (ranks.image_to_text, ranks.text_to_image)
    return sum(recall(one, k) for one in both for k in CUTS) / (2 * len(CUTS))


def asked(ranks: Tensor) -> Tensor:
    """The ranks of the queries that have an answer."""
    return ranks[ranks > 0]


def _own_scores(images_ID: Tensor, texts_TD: Tensor, *, pairs: Pairs, tile: int) -> Tensor:
    parts = [torch.zeros(0, dtype=torch.float64, device=images_ID.device)]
    for part in tiles(len(pairs.images), tile=tile):
        images, texts = images_ID[pairs.images[part]], texts_TD[pairs.texts[part]]
        parts.append((grid(images) * grid(texts)).sum(1))
    return torch.cat(parts)


def _ranks(ahead: Tensor, best: Tensor) -> Tensor:
    return torch.where(best.isneginf(), 0, 1 + ahead).long()
