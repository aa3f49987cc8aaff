"""A picture and a text to what matched: `explain`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unicl.compare import require_texts, scores, terms_of
from unicl.data.image import decode, fit
from unicl.errors import BadImage, UserError
from unicl.model import TwoTowers, View
from unicl.objective.terms import ContrastSettings
from unicl.similarity.find import OF_PARTS
from unicl.space import Embedding, ImageSource, Slice, Streamed
from unicl.towers.image import ImageTower
from unicl.use.explain.align import agreement, attention, grid, passed, products, reduction, spread
from unicl.use.explain.area import Area
from unicl.use.explain.attribute import agreements, attribute, still
from unicl.use.explain.words import PLACE, Word, Wording, label_words, labelled, read_words

Method = Literal["products", "attention", "gradients"]
_ATTENDED: Final = {"sharpness": 4.0, "words_first": True, "skip": 0}
"""What `unicl.similarity.attended` takes where a term says nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassIndex:
    """FILIP's picture of indices (section 4.4): ``best (h, w)`` is the number of each place's best part of the text.

    ``parts`` says what each part is (0 is the start mark), ``label`` what is looked for ("" is any word), and
    ``wanted`` the numbers of its parts: a place shows the label if its best part is among these.
    """

    parts: tuple[str, ...]
    best: Tensor
    label: str
    wanted: tuple[int, ...]

    @property
    def hits(self) -> Tensor:
        """``(h, w)`` bool: the places that show the label."""
        return torch.isin(self.best, torch.tensor(self.wanted, dtype=self.best.dtype))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation:
    """Which places of a picture speak for which words of a text.

    * ``method``: "products" of places and words, "attention" of words to places, or "gradients" of the score.
    * ``heat (Q, h, w)``: of each word at each place, row by row of the square that the model saw; ``whole (h, w)``: of
      the text; by products and attention the best of its words. In the method's own units; gradients are 0 or more.
    * ``scores``: of each word: by products, what its parts find at best; by attention, its cosine with what it looks
      at; by gradients, its score as a text of its own. ``score``: of the whole text, for finding pictures by it.
    * ``area``: where the square lies on ``picture``.
    """

    model: str
    image: str
    text: str
    method: Method
    words: tuple[str, ...]
    heat: Tensor
    whole: Tensor
    scores: tuple[float, ...]
    score: float
    picture: Image.Image
    area: Area
    index: ClassIndex | None = None
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Tensor | None:
        """``(h, w)``: the number of each place's best part of the text; None if the model compares no such parts."""
        return None if self.index is None else self.index.best

    def peak(self, word: int) -> tuple[int, int]:
        """The row and the column of the place where a word is found best."""
        row, column = divmod(int(self.heat[word].argmax()), self.heat.shape[2])
        return row, column

    def point(self, row: int, column: int) -> tuple[float, float]:
        """The middle of a place in pixels of the picture."""
        height, width = self.whole.shape
        return self.area.at((column + 0.5) / width, (row + 0.5) / height)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """What a method says, before it is put on the picture."""

    method: Method
    words: tuple[str, ...]
    heat: Tensor
    whole: Tensor
    scores: tuple[float, ...]
    score: float
    index: ClassIndex | None = None
    notes: tuple[str, ...] = ()


def explain(
    model: TwoTowers,
    image: ImageSource | Image.Image | str,
    text: str,
    *,
    view: View = "instances",
    label: str | None = None,
    origin: str = "",
) -> Explanation:
    """Which places of ``image`` speak for which words of ``text``.

    A model that compares parts says it by what it compares; any other by gradients (see `attribute`), each word as a
    text of its own. A classifier explains its classes: the text is one, or several with commas between.
    ``label`` fills the ``{label}`` of the text, or is among its words; ``origin`` says where the model comes from.
    Raises `UserError` if the picture, the text or the model will not do.
    """
    if not isinstance(model.image, ImageTower):
        raise UserError("an export cannot be explained: its graphs give whole vectors only; name the model it was of")
    if not text.strip():
        raise UserError('the text is empty; say what to look for, such as "a red apple on a table"')
    require_texts(model)
    pixels_3HW, name = _decoded(image)
    settings = model.settings.image
    height, width = pixels_3HW.shape[1:]
    square = fit(pixels_3HW, size=settings.size, frame=settings.frame)[None]
    found = _classes(model, square, text, label) if model.text is None else _found(model, square, text, view, label)
    return Explanation(
        model=origin or model.settings.recipe,
        image=name,
        text=labelled(text, label or ""),
        method=found.method,
        words=found.words,
        heat=found.heat,
        whole=found.whole,
        scores=found.scores,
        score=found.score,
        picture=Image.fromarray(pixels_3HW.permute(1, 2, 0).contiguous().numpy()),
        area=Area.seen(width, height, size=settings.size, frame=settings.frame),
        index=found.index,
        notes=found.notes,
    )


def _decoded(image: ImageSource | Image.Image | str) -> tuple[Tensor, str]:
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1), "picture"
    source = image if isinstance(image, bytes | Slice | Streamed) else Path(image)
    name = str(source) if isinstance(source, Path) else "picture"
    try:
        return decode(source), name
    except (BadImage, OSError) as error:
        raise UserError(f"the picture {name!r} cannot be used: {error}") from error


def _found(model: TwoTowers, square: Tensor, text: str, view: View, label: str | None) -> _Found:
    assert model.settings.text is not None
    assert model.tokenizer is not None
    given, parts = labelled(text, label or ""), model.settings.text.parts
    wording = read_words(model.tokenizer, given, parts=parts)
    wanted = None if label is None else label_words(model.tokenizer, text, label=label, parts=parts)
    term = next((t for t in terms_of(model, view) if t.similarity in OF_PARTS), None)
    if term is None:
        return _by_gradients(model, square, given, wording, view=view)
    with still(model), torch.no_grad():
        reduced = reduction(model.image, square.to(model.device))
    embedded = _Pair(
        images=model.encode_images(square), texts=model.encode_texts([given]), reduced=reduced, first=_first(model)
    )
    _, by_text = scores(model, embedded.images, embedded.texts, view=view)
    asked = _Asked(wording=wording, label=label, wanted=wanted, score=float(by_text[0, 0]), places=PLACE in text)
    return _by_products(embedded, asked) if term.similarity == "tokenwise" else _by_attention(embedded, asked, term)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pair:
    """A picture and a text with their parts; ``first`` parts of the picture are no places."""

    images: Embedding
    texts: Embedding
    reduced: Tensor | None
    first: int

    @property
    def places(self) -> Tensor:
        assert self.images.parts is not None
        return self.images.parts.values[0, self.images.parts.mask[0]]

    @property
    def parts(self) -> Tensor:
        assert self.texts.parts is not None
        return self.texts.parts.values[0, self.texts.parts.mask[0]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    wording: Wording
    label: str | None
    wanted: tuple[Word, ...] | None
    score: float
    places: bool


def _by_products(pair: _Pair, asked: _Asked) -> _Found:
    matches_QK = products(pair.places, pair.parts)
    shown = grid(matches_QK if pair.reduced is None else spread(matches_QK, pair.reduced), first=pair.first)
    words = _with_parts(asked.wording.telling)
    heat = torch.stack([shown[list(word.parts)].amax(0) for word in words])
    best = matches_QK.amax(1)
    wanted = asked.wanted or words
    index = ClassIndex(
        parts=_numbered(asked.wording.parts, len(shown)),
        best=shown.argmax(0),
        label=asked.label or "",
        wanted=tuple(sorted({part for word in wanted for part in word.parts})),
    )
    return _Found(
        method="products",
        words=tuple(word.text for word in words),
        heat=heat,
        whole=heat.amax(0),
        scores=tuple(float(best[list(word.parts)].mean()) for word in words),
        score=asked.score,
        index=index,
        notes=(*_cut(asked.wording), *_reduced(pair)),
    )


def _by_attention(pair: _Pair, asked: _Asked, term: ContrastSettings) -> _Found:
    options = {**_ATTENDED, **term.options, **term.use_options}
    skip = int(options["skip"])
    parts = pair.parts[skip:]
    looks_QK = attention(
        pair.places, parts, sharpness=float(options["sharpness"]), words_first=bool(options["words_first"])
    )
    agrees = agreement(looks_QK, pair.places, parts)
    shown = grid(looks_QK if pair.reduced is None else passed(looks_QK, pair.reduced), first=pair.first)
    words = [word for word in _with_parts(asked.wording.telling) if min(word.parts) >= skip]
    if not words:
        raise UserError("no word of the text is left to look at places; give more words")
    rows = [[part - skip for part in word.parts] for word in words]
    heat = torch.stack([shown[row].mean(0) for row in rows])
    # Where words share each place, one word alone takes all of every place.
    alone = ("a text of one word looks everywhere alike; name more things to see where",) if len(looks_QK) == 1 else ()
    unused = ("a class index is of models that compare tokens (filip, wukong)",) if asked.label and asked.places else ()
    return _Found(
        method="attention",
        words=tuple(word.text for word in words),
        heat=heat,
        whole=heat.amax(0),
        scores=tuple(float(agrees[row].mean()) for row in rows),
        score=asked.score,
        notes=(*_cut(asked.wording), *_reduced(pair), *alone, *unused),
    )


def _by_gradients(model: TwoTowers, square: Tensor, text: str, wording: Wording, *, view: View) -> _Found:
    words = tuple(dict.fromkeys(word.text for word in wording.telling))
    texts = model.encode_texts([*words, text])

    def score(images: Embedding) -> Tensor:
        return agreements(model, _on_cpu(images), texts, view=view)[0]

    heat, found = attribute(model, square, score=score)
    return _Found(
        method="gradients",
        words=words,
        heat=heat[:-1],
        whole=heat[-1],
        scores=tuple(found[:-1].tolist()),
        score=float(found[-1]),
        notes=(*_cut(wording), *_silent([*words, text], heat)),
    )


def _classes(model: TwoTowers, square: Tensor, text: str, label: str | None) -> _Found:
    """A classifier's classes: heat towards their logits, probabilities as scores."""
    if not model.settings.classes:
        raise UserError(
            f"this model was trained with {model.settings.recipe!r}, which has neither texts nor classes to explain"
        )
    if label is not None:
        raise UserError("this model has no text tower and explains classes; give the class in the place of the text")
    known = [each.label for each in model.settings.classes]
    names = [text.strip()] if text.strip() in known else [part.strip() for part in text.split(",") if part.strip()]
    head_CF = model.classifier(known, templates=())
    rows = [known.index(name) for name in names if name in known]
    if len(rows) < len(names):
        model.classifier(names, templates=())  # says which is not known

    def logits(images: Embedding) -> Tensor:
        features = _on_cpu(images).features[0]
        return head_CF[:, :-1] @ features + head_CF[:, -1]

    heat, _ = attribute(model, square, score=lambda images: logits(images)[rows])
    with torch.no_grad():
        shares = logits(model.encode_images(square)).softmax(0)[rows]
    return _Found(
        method="gradients",
        words=tuple(names),
        heat=heat,
        whole=heat.amax(0),
        scores=tuple(shares.tolist()),
        score=float(shares.sum()),
        notes=_silent(names, heat),
    )


def _on_cpu(images: Embedding) -> Embedding:
    return Embedding(whole=images.whole.float().cpu(), features=images.features.float().cpu(), parts=images.parts)


def _first(model: TwoTowers) -> int:
    """How many parts of a picture stand before its places."""
    asked = model.settings.image.parts
    if asked is None or not asked.first or asked.stage is not None:
        return 0
    return int(getattr(model.image.backbone, "num_prefix_tokens", 0))


def _with_parts(words: Sequence[Word]) -> list[Word]:
    kept = [word for word in words if word.parts]
    if not kept:
        raise UserError("the text has no word that the model compares; give other words")
    return kept


def _numbered(parts: Sequence[str], count: int) -> tuple[str, ...]:
    """What each of ``count`` parts says; those of a tokenizer that always fills its rows are padding behind."""
    return (*parts[:count], *["padding"] * (count - len(parts)))


def _cut(wording: Wording) -> tuple[str, ...]:
    return ("the text is longer than the model reads; its last words are left out",) if wording.cut else ()


def _silent(texts: Sequence[str], heat: Tensor) -> tuple[str, ...]:
    """Which scores no place speaks for: their pictures have no colour."""
    names = [f'"{text}"' for text, own in zip(texts, heat, strict=True) if float(own.max()) <= 0]
    return (f"no place speaks for {', '.join(dict.fromkeys(names))}",) if names else ()


def _reduced(pair: _Pair) -> tuple[str, ...]:
    if pair.reduced is None:
        return ()
    return (
        f"the model compares {len(pair.reduced)} learned means of its places; a place shows what the means that look "
        "at it match",
    )
