"""Classes of pictures by name, zero-shot: probabilities of each name for each picture."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unicl.data import prompts
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.exact import require_finite
from unicl.model import TwoTowers
from unicl.space import ImageSource
from unicl.use.decode import Decoded, decoded
from unicl.use.files import pictures
from unicl.use.vectors import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """One picture and its likeliest classes, best first: ``answers`` are pairs of name and probability."""

    id: str
    image: ImageSource | None
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
    templates: Sequence[str] = (),
    top: int = 5,
    batch: int = 64,
    progress: bool = False,
) -> Classes:
    """The likeliest of ``names`` for each picture: softmax of scale times cosine in the class view (CLIP, 3.1.2).

    Without names, the classes that the model was trained on; without templates, the set of the names' language.
    Raises `UserError` for names that repeat, none to choose from, or no picture that can be read.
    """
    names = _checked(tuple(names) or tuple(known.label for known in model.settings.classes))
    if top < 1 or batch < 1:
        raise UserError(f"top={top} and batch={batch}: both must be at least 1")
    listing = pictures(paths)
    classes = model.classifier(names, templates=templates or prompts.templates(prompts.language_of(names)))
    rows: list[Classified] = []
    skipped: list[Item] = []
    with bar("classifying pictures", total=len(listing), shown=progress) as advance:
        image = model.settings.image
    for got in decoded(listing, size=image.size, batch=batch, frame=image.frame):
        rows += _answers(model, got, names=names, classes_CD=classes, top=top)
        skipped += got.skipped
        advance(len(got.items) + len(got.skipped))
    if not rows:
        first = "; ".join(f"{item.id}: {item.reason}" for item in skipped[:3])
        raise UserError(f"none of the {len(skipped)} pictures can be read ({first})")
    return Classes(names=names, rows=tuple(rows), skipped=tuple(skipped))


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


def _answers(model: TwoTowers, got: Decoded, *, names: Sequence[str], classes_CD: Tensor, top: int) -> list[Classified]:
    vectors = require_finite(model.embed_image(got.pixels, view="classes"), what="vectors of pictures")
    # A classifier's own layer gives logits as they are; only cosines have a learned scale.
    scale = 1.0 if model.text is None else model.scale("classes")
    shares, order = (scale * vectors @ classes_CD.T).softmax(1).sort(descending=True, stable=True)
    best = zip(got.items, order[:, :top].tolist(), shares[:, :top].tolist(), strict=True)
    return [
        Classified(id=item.id, image=item.image, answers=tuple((names[c], p) for c, p in zip(row, values, strict=True)))
        for item, row, values in best
    ]


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise UserError("no class names given, and the model has none of its own; name them: --names cat,dog,bird")
    name, times = Counter(map(prompts.clean_name, names)).most_common(1)[0]
    if times > 1:
        raise UserError(f"the class name {name!r} is given {times} times; give each class its own name")
    return names
