"""Retrieval by scores that no inner product of whole vectors tells: parts, or several terms together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from unicl import compare
from unicl.evaluate.exact import require_finite, tiles
from unicl.evaluate.retrieval import Pairs, Ranks, best_right
from unicl.model import TwoTowers
from unicl.space import Embedding, all_rows

TIE: Final = 2.0**-18
"""How much less than the best right answer's score counts as the same, since sums differ with the order of adding."""
ENCODED: Final = 1024

Exchange = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """How several processes that hold some of the pictures each find what is true of all: maxima and sums."""

    most: Exchange = lambda values: values
    total: Exchange = lambda values: values


def encoded_texts(model: TwoTowers, texts: Sequence[str]) -> Embedding:
    """Texts to compare pictures with, parts in float16; raises `UserError` if they are not finite."""
    found = []
    for rows in tiles(len(texts), tile=ENCODED):
        embedding = model.encode_texts(texts[rows])
        require_finite(embedding.whole, what="text embeddings")
        found.append(compare.kept(model, embedding) or replace(embedding, parts=None))
    parts = bool(found) and found[0].parts is not None
    joined = all_rows(found, width=model.settings.width, features=0, parts=parts)
    if joined.parts is not None:
        require_finite(joined.parts.values, what="texts' parts")
    return joined


def rank_by_scores(
    model: TwoTowers, images: Embedding, texts: Embedding, *, pairs: Pairs, peers: Peers = Peers()
) -> Ranks:
    """`unicl.evaluate.retrieval.rank_both_ways` by `unicl.compare.scores`, each direction by its own table.

    Pessimistic like that, with `TIE` for scores that are the same. Memory for a few rows of scores. With ``peers``,
    ``images`` and the numbers of ``pairs`` are this process's, and so are the ranks of images; those of texts are of
    all.
    """
    own = compare.pair_scores(model, images.select(pairs.images), texts.select(pairs.texts), view="instances")
    require_finite(torch.stack(own, 1), what="scores of images and their texts")
    best_I = best_right(own[0], pairs.images, size=len(images.whole))
    best_T = peers.most(best_right(own[1], pairs.texts, size=len(texts.whole)))
    floor_I, floor_T = _floor(best_I), _floor(best_T)
    ahead_I, ahead_T = (torch.zeros(len(best), dtype=torch.int64) for best in (best_I, best_T))
    for rows, by_image, by_text in compare.score_rows(model, images, texts, view="instances"):
        here = (pairs.images >= rows.start) & (pairs.images < rows.stop)
        right = (pairs.images[here] - rows.start, pairs.texts[here])
        by_image[right] = -torch.inf
        by_text[right] = -torch.inf
        ahead_I[rows] = (by_image >= floor_I[rows, None]).sum(1)
        ahead_T += (by_text >= floor_T).sum(0)
    return Ranks(
        image_to_text=torch.where(best_I.isneginf(), 0, 1 + ahead_I),
        text_to_image=torch.where(best_T.isneginf(), 0, 1 + peers.total(ahead_T)),
    )


def _floor(best: Tensor) -> Tensor:
    return best - TIE * best.abs().clamp(min=1).masked_fill(best.isneginf(), 1)
