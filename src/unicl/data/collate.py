"""Samples to a batch: which text each shows this time, and which keys its rows carry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unicl.data.keys import class_key, sample_key, text_key
from unicl.data.prompts import Prompts, fill, language_of, prompt_set, sentences_for
from unicl.data.text import Tokenizer
from unicl.space import Batch, Keys, Sample, TextType

KeyMode = Literal["sample", "label", "text", "typed"]
"""What makes two rows one thing: their sample (CLIP), class (UniCL), text (Florence), or one of several (typed)."""

Entry = tuple[int, TextType, float]
Say = Callable[[str, int], str]
_POSITIVE = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTexts:
    """What is said of a class: its names (the label itself unless ``names`` knows better) in templates by language."""

    templates: Mapping[str, Prompts]
    names: Mapping[str, tuple[str, ...]]

    def draw(self, label: str, *, rng: np.random.Generator) -> str:
        """One text: a name and a template of the name's language, each drawn uniformly."""
        names = self.names.get(label, (label,))
        name = names[rng.integers(len(names))]
        fitting = self.templates_for(name)
        return fill(fitting[int(rng.integers(len(fitting)))], name)

    def templates_for(self, name: str) -> Sequence[str]:
        """The templates in the language of a name, or its own; raises `UserError` if only other classes have any."""
        return sentences_for(self.templates[language_of((name,))], name)


def class_texts(prompts: str, *, names: Mapping[str, Sequence[str]] | None = None) -> ClassTexts:
    """``prompts`` is ``auto`` (each name in its own language), or a set as `prompt_set` reads it."""
    sets = {language: prompt_set(language if prompts == "auto" else prompts) for language in ("en", "zh")}
    return ClassTexts(templates=sets, names={label: tuple(each) for label, each in (names or {}).items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A sample as one step sees it: its pixels (or features), the caption that was drawn, and what was mixed into it.

    ``partner`` is the sample that MixUp or CutMix mixed in, ``share`` the part of the image that is still its own.
    """

    sample: Sample
    source: str
    caption: str | None
    image: Tensor | None
    view: Tensor | None = None
    partner: "Drawn | None" = None
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    keys: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collator:
    """Puts samples into one batch: rows of images, rows of texts, the keys of both, each distinct text once.

    A sample shows at most one caption and one text of each of its classes. All samples of a class show the same
    text in a step (drawn by the class and ``rng_key``, hence equal on every rank).
    """

    mode: KeyMode
    texts: ClassTexts
    tokenizer: Tokenizer | None

    def __call__(self, drawn: Sequence[Drawn], *, rng_key: Sequence[int], out: Tensor | None = None) -> Batch:
        """The batch of these samples; with ``out``, ``(views, rows, ...)``, its images are written and lie there.

        The images may already be rows of ``out``, in order.
        """
        say = cache(lambda label, key: self.texts.draw(label, rng=np.random.default_rng([*rng_key, key & _POSITIVE])))
        images = [d for d in drawn if d.image is not None]
        rows: dict[_Text, int] = {}
        for row in (row for d in drawn if self.tokenizer is not None for row in self._text_rows(d, say)):
            rows[row] = rows.get(row, 0) + 1
        distinct = {text: k for k, text in enumerate(dict.fromkeys(row.text for row in rows))}
        tokens, mask = self._tokens(list(distinct))
        return Batch(
            images=_stack([d.image for d in images], None if out is None else out[0]),
            views=_stack([d.view for d in images], None if out is None else out[-1])
            if any(d.view is not None for d in images)
            else None,
            image_keys=keys_of([self._image_entries(d, say) for d in images]),
            tokens=tokens,
            token_mask=mask,
            text_index=torch.tensor([distinct[row.text] for row in rows], dtype=torch.int64),
            text_keys=keys_of([row.keys for row in rows]),
            text_counts=torch.tensor(list(rows.values()), dtype=torch.float32),
            ids=tuple(f"{d.source}/{d.sample.id}" for d in drawn),
        )

    def _tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        if self.tokenizer is None:
            return torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.bool)
        return self.tokenizer(texts)

    def _text_rows(self, drawn: Drawn, say: Say) -> list[_Text]:
        shown = self._shown(drawn, say)
        if self.mode not in ("sample", "label"):
            return [_Text(text, (entry,)) for text, entry in shown]
        # One key a row: a text stands for its whole sample, what was mixed into it included (A = M Mᵀ).
        entries = tuple(self._image_entries(drawn, say))
        return [_Text(text, entries) for text, _ in shown]

    def _image_entries(self, drawn: Drawn, say: Say) -> list[Entry]:
        own = self._entries(drawn, say)
        if drawn.partner is None:
            return own
        mixed_in = self._entries(drawn.partner, say)
        return _scaled(own, drawn.share) + _scaled(mixed_in, 1 - drawn.share)

    def _entries(self, drawn: Drawn, say: Say) -> list[Entry]:
        sample = drawn.sample
        own = (sample_key(drawn.source, sample.id), TextType.CAPTION, 1.0)
        classes = [(class_key(sample.namespace, label), TextType.CLASS, 1.0) for label in sample.labels]
        # All captions of an image belong to it, also those that another sample of the batch happens to show.
        said = [(text_key(caption), TextType.CAPTION, 1.0) for caption in sample.captions]
        match self.mode:
            case "sample":
                entries = [own]
            case "label":
                entries = classes or [own]
            case "text":
                entries = said + [entry for _, entry in self._shown(drawn, say) if entry[1] is TextType.CLASS]
            case "typed":
                entries = said + classes
        return list(dict.fromkeys(entries))

    def _shown(self, drawn: Drawn, say: Say) -> list[tuple[str, Entry]]:
        """The texts of a sample, and the one key that each carries where a text carries its own."""
        shown = []
        if drawn.caption is not None:
            shown.append((drawn.caption, (text_key(drawn.caption), TextType.CAPTION, 1.0)))
        for label in drawn.sample.labels:
            key = class_key(drawn.sample.namespace, label)
            text = say(label, key)
            carried = text_key(text) if self.mode == "text" else key
            shown.append((text, (carried, TextType.CLASS, 1.0)))
        return shown


def keys_of(entries: Sequence[Sequence[Entry]]) -> Keys:
    """The incidence of rows that carry these keys; entries of one row and key come together once."""
    sums: dict[tuple[int, int, int], float] = {}
    for row, each in enumerate(entries):
        for key, type, weight in each:
            place = (row, key, int(type))
            sums[place] = sums.get(place, 0.0) + weight
    flat = torch.tensor(list(sums), dtype=torch.int64).reshape(-1, 3)
    rows, keys, types = flat.unbind(1)
    return Keys(rows=rows, keys=keys, types=types, weights=torch.tensor(list(sums.values())), size=len(entries))


def _scaled(entries: Sequence[Entry], share: float) -> list[Entry]:
    return [(key, type, weight * share) for key, type, weight in entries]


def _stack(images: Sequence[Tensor | None], out: Tensor | None) -> Tensor:
    real = [image for image in images if image is not None]
    if out is None or not real:
        return torch.stack(real) if real else torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    # Rows only move up, to the place of one that is missing: what is overwritten has been moved before.
    for row, image in zip(out, real, strict=False):
        if row.data_ptr() != image.data_ptr():
            row.copy_(image)
    return out[: len(real)]
