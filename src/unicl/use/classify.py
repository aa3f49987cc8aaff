"""Classes of pictures by name, zero-shot: probabilities of each name for each picture."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from unicl import compare
from unicl.data import prompts
from unicl.data.prompts import Prompts
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.exact import require_finite
from unicl.model import TwoTowers
from unicl.space import Embedding, ImageSource, all_rows
from unicl.use.decode import decoded
from unicl.use.files import Picture, pictures
from unicl.use.vectors import Item

WAITING: Final = 1 << 28
"""Numbers of encoded pictures that are held to be scored together: half a gigabyte of parts in float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """One picture and its likeliest classes, best first: ``answers`` are pairs of name and probability."""

    id: str
    image: ImageSource | None
    answers: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The answers for all pictures that could be read; ``names`` are what was asked for.

    ``note`` is what must be said beside the numbers: that they depend on the set of pictures, or why they do not.
    """

    names: tuple[str, ...]
    rows: tuple[Classified, ...]
    skipped: tuple[Item, ...]
    note: str = ""


def classify(
    model: TwoTowers,
    paths: Sequence[str | Path],
    *,
    names: Sequence[str] = (),
    templates: Prompts | str = (),
    top: int = 5,
    batch: int = 64,
    progress: bool = False,
) -> Classes:
    """The likeliest of ``names`` for each picture: softmax of scale times cosine in the class view (CLIP, 3.1.2).

    A model that scores classes prompt by prompt is asked so (`unicl.compare.class_scores`); if it standardises them,
    the pictures are one set, and the answer's note says it. Without names, the classes that the model was trained on;
    ``templates`` are sentences, sentences of each class by name, or the name of a set; without them, the set of the
    names' language. Raises `UserError` for names that repeat, none to choose from, or no picture that can be read.
    """
    compare.require_texts(model)
    names = _checked(tuple(names) or tuple(known.label for known in model.settings.classes))
    if top < 1 or batch < 1:
        raise UserError(f"top={top} and batch={batch}: both must be at least 1")
    said = prompts.prompt_set(templates) if isinstance(templates, str) else templates
    scores_of = _scorer(model, names, said or compare.usual_prompts(model, names))
    read = _read(model, pictures(paths), scores_of, batch=batch, progress=progress)
    scores_NC = torch.cat(read.scores) if read.scores else torch.zeros(0, len(names))
    if not len(scores_NC):
        first = "; ".join(f"{item.id}: {item.reason}" for item in read.skipped[:3])
        raise UserError(f"none of the {len(read.skipped)} pictures can be read ({first})")
    require_finite(scores_NC, what="pictures' class scores")
    if compare.set_note(model, len(scores_NC)):
        scores_NC = compare.standardised(scores_NC)
    shares_NC = compare.class_shares(model, scores_NC, pictures=len(scores_NC))
    return Classes(
        names=names,
        rows=_answers(read.items, shares_NC, names=names, top=top),
        skipped=tuple(read.skipped),
        note=compare.set_note(model, len(scores_NC)) or "",
    )


def parse_names(text: str) -> tuple[str, ...]:
    """Class names as typed: ``red fruit,green fruit`` (Chinese commas do as well), or a .txt or .json file of them.

    Raises `UserError` if there are none, or a file that looks meant is not there.
    """
    path = Path(text).expanduser()
    if path.suffix in (".txt", ".json"):
        return tuple(prompts.read_names(path).values())
    names = tuple(name.strip() for name in re.split("[,，、\n]", text) if name.strip())
    if not names:
        raise UserError(
            f"--names {text!r} holds no names; write them with commas between, or give a .txt or .json file"
        )
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """The pictures that could be read with their scores, before they are made comparable, and the others."""

    items: list[Item]
    scores: list[Tensor]
    skipped: list[Item]


def _scorer(model: TwoTowers, names: Sequence[str], templates: Prompts) -> Callable[[Embedding], Tensor]:
    """``(N, C)`` from encoded pictures; one vector a class is made only once."""
    if not compare.classes_by_vectors(model):
        return lambda images: compare.ensemble_scores(model, images, names, templates=templates)
    classes_CD = model.classifier(names, templates=templates)
    return lambda images: model.views_of(images)["classes"] @ classes_CD.T


def _read(
    model: TwoTowers,
    listing: Sequence[Picture],
    scores_of: Callable[[Embedding], Tensor],
    *,
    batch: int,
    progress: bool,
) -> _Read:
    read = _Read(items=[], scores=[], skipped=[])
    waiting: list[Embedding] = []
    by_vectors, image = compare.classes_by_vectors(model), model.settings.image
    with bar("classifying pictures", total=len(listing), shown=progress) as advance:
        for got in decoded(listing, size=image.size, batch=batch, frame=image.frame):
            if got.items:
                waiting.append(_encoded(model, got.pixels))
            read.items.extend(got.items)
            read.skipped.extend(got.skipped)
            # Prompts are encoded again for each score of many pictures, so these wait for as many as fit.
            if by_vectors or sum(map(_size, waiting)) > WAITING:
                read.scores.extend(scores_of(each) for each in _joined(model, waiting))
                waiting.clear()
            advance(len(got.items) + len(got.skipped))
        read.scores.extend(scores_of(each) for each in _joined(model, waiting))
    return read


def _encoded(model: TwoTowers, pixels: Tensor) -> Embedding:
    found = model.encode_images(pixels, batch=len(pixels))
    require_finite(found.whole, what="vectors of pictures")
    return compare.kept(model, found) or replace(found, parts=None)


def _joined(model: TwoTowers, several: Sequence[Embedding]) -> list[Embedding]:
    """One column of several, if there are any."""
    if not several:
        return []
    parts = several[0].parts is not None
    return [all_rows(several, width=model.settings.width, features=model.image.feature_width, parts=parts)]


def _size(images: Embedding) -> int:
    return images.whole.numel() + (0 if images.parts is None else images.parts.values.numel())


def _answers(items: Sequence[Item], shares_NC: Tensor, *, names: Sequence[str], top: int) -> tuple[Classified, ...]:
    shares, order = shares_NC.sort(dim=1, descending=True, stable=True)
    best = zip(items, order[:, :top].tolist(), shares[:, :top].tolist(), strict=True)
    return tuple(
        Classified(id=item.id, image=item.image, answers=tuple((names[c], p) for c, p in zip(row, values, strict=True)))
        for item, row, values in best
    )


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise UserError("no class names given, and the model has none of its own; name them: --names cat,dog,bird")
    name, times = Counter(map(prompts.clean_name, names)).most_common(1)[0]
    if times > 1:
        raise UserError(f"the class name {name!r} is given {times} times; give each class its own name")
    return names
