"""Pictures and texts compared as a model's use asks for it: wholes, parts, or several terms together."""

import torch
from torch import Tensor

from unicl.model import TwoTowers, View
from unicl.objective.terms import ContrastSettings
from unicl.similarity.find import find_similarity
from unicl.space import Embedding


def terms_of(model: TwoTowers, view: View) -> tuple[ContrastSettings, ...]:
    """The contrasts of a model that say what belongs together in a view."""
    wanted = {"instances": "captions", "classes": "classes"}[view]
    contrasts = [t for t in model.settings.terms if isinstance(t, ContrastSettings)]
    return tuple(t for t in contrasts if t.texts == wanted) or tuple(t for t in contrasts if t.texts == "all")


def reads_parts(model: TwoTowers, view: View) -> bool:
    """Whether a view compares more than whole vectors, so that cosines do not tell its scores."""
    return any(term.similarity != "cosine" for term in terms_of(model, view))


def scores(model: TwoTowers, images: Embedding, texts: Embedding, *, view: View) -> tuple[Tensor, Tensor]:
    """``(I, T)`` twice: how well pictures and texts agree, for finding texts by picture, and pictures by text.

    The mean of the similarities of the view's terms, by their weights, without their scales; whole vectors are
    compared by cosine where no term is of this view. Columns as `TwoTowers.encode_images` and `encode_texts` give
    them. Raises `UserError` if a term compares parts and there are none.
    """
    terms = terms_of(model, view) or (ContrastSettings(),)
    weights = [term.weight / sum(t.weight for t in terms) for term in terms]
    tables = [_table(term, images, texts) for term in terms]
    by_image, by_text = (
        torch.stack([weight * table[side] for weight, table in zip(weights, tables, strict=True)]).sum(0)
        for side in (0, 1)
    )
    return by_image, by_text


def _table(term: ContrastSettings, images: Embedding, texts: Embedding) -> tuple[Tensor, Tensor]:
    similarity = find_similarity(term.similarity, options={**term.options, **term.use_options})
    everything = slice(None)
    return similarity(images.select(everything, dims=term.dims), texts.select(everything, dims=term.dims))
