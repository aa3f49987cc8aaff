"""Classes of pictures by name, zero-shot: probabilities of each name for each picture."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import regex
import torch

from unicl.data.prompts import language_of, read_names, templates
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.exact import require_finite
from unicl.model import TwoTowers
from unicl.space import ImageSource
from unicl.use.decode import decoded
from unicl.use.files import pictures
from unicl.use.vectors import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """One picture and its likeliest classes, best first: ``answers`` are pairs of name and probability."""

    id: str
    image: ImageSource
    answers: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The answers for all pictures that could be read; ``names`` are what was asked for."""

    names: tuple[str, ...]
    rows: tuple[Classified, ...]
    skipped: tuple[Item, ...]


def classify(
    model: TwoTowers,
    paths: Sequence[str | Path],
    *,
    names: Sequence[str] = (),
    prompts: Sequence[str] = (),
    top: int = 5,
    batch: int = 64,
    progress: bool = False,
) -> Classes:
    """The likeliest of ``names`` for each picture: softmax of scale times cosine in the class view (CLIP, 3.1.2).

    Without names, the classes that the model was trained on; ``prompts`` are templates with ``{}``, else the set of
    the names' language. Raises `UserError` for names that repeat, none to choose from, or no readable picture.
    """
    known = tuple(each.label for each in model.settings.classes)
    names = _names(tuple(names) or known)
    if top < 1:
        raise UserError(f"top={top} asks for no class at all; give 1 or more")
    listing = pictures(paths)
    classes = model.classifier(names, templates=tuple(prompts) or templates(language_of(names)))
    # A classifier's own layer gives logits as they are; only cosines have a learned scale.
    scale = 1.0 if model.text is None else model.scale("classes")
    rows: list[Classified] = []
    skipped: list[Item] = []
    with bar("classifying pictures", total=len(listing), shown=progress) as advance:
        for start, got in enumerate(decoded(listing, size=model.settings.image.size, batch=batch)):
            vectors = require_finite(
                model.embed_image(got.pixels, view="classes", batch=batch), what="vectors of pictures"
            )
            best = (scale * vectors @ classes.T).softmax(1).topk(min(top, len(names)))
            for item, shares, order in zip(got.items, best.values.tolist(), best.indices.tolist(), strict=True):
                answers = tuple((names[c], share) for c, share in zip(order, shares, strict=True))
                rows.append(Classified(id=item.id, image=listing[0].image, answers=answers))
            skipped += got.skipped
            advance(len(got.items) + len(got.skipped))
    return Classes(names=names, rows=tuple(rows), skipped=tuple(skipped))
