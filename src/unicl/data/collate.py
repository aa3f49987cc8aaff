"""Samples to a batch: which text each shows this time, and which keys its rows carry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from unicl.data.keys import class_key, finding_key, sample_key, text_key
from unicl.data.prompts import Prompts, fill, language_of, prompt_set, sentences_for
from unicl.data.text import Tokenizer
from unicl.space import NOTHING, Batch, Captions, Finding, Findings, Keys, Sample, TextType

KeyMode = Literal["sample", "label", "text", "typed"]
"""What makes two rows one thing: their sample (CLIP), class (UniCL), text (Florence), or one of several (typed)."""

Entry = tuple[int, TextType, float]
Say = Callable[[str, int], str]
_POSITIVE = 2**64 - 1
_SECOND: Entry = (text_key("the second view of the texts"), TextType.VIEW, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingValues:
    """What a finding counts in a row's vector; one that is not mentioned counts 0.

    The defaults make MedCLIP's multi-hot vectors (section 3.2), where only what is there counts. Its released code
    has -1 for what is absent; ``uncertain`` as 1 or as ``absent`` are CheXpert's U-Ones and U-Zeros.
    """

    present: float = 1.0
    absent: float = 0.0
    uncertain: float = 0.0

    def entries(self, findings: Findings) -> tuple[Entry, ...]:
        """The entries of a row: what counts, or one that counts 0 and says that its findings are known to be none."""
        values = {
            Finding.PRESENT: self.present,
            Finding.ABSENT: self.absent,
            Finding.UNCERTAIN: self.uncertain,
            Finding.UNMENTIONED: 0.0,
        }
        counting = [(finding_key(name), TextType.FINDING, values[known]) for name, known in findings if values[known]]
        return tuple(counting or [(finding_key(name), TextType.FINDING, 0.0) for name, _ in findings[:1]])


class Hide(Protocol):
    """Hides words of a text that are to be found again."""

    def __call__(self, text: str, tokens: Tensor, /, *, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """From a text and its tokens ``(L,)``: the tokens to show, and those that are hidden, `NOTHING` elsewhere."""


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
    ``other`` is the caption as the second view of the texts has it.
    """

    sample: Sample
    source: str
    caption: str | None
    image: Tensor | None
    view: Tensor | None = None
    other: str | None = None
    partner: "Drawn | None" = None
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    keys: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collator:
    """Puts samples into one batch: rows of images, rows of texts, the keys of both, each distinct text once.

    A sample shows at most one caption and, if ``says_classes``, one text of each of its classes. All samples of a class
    show the same text in a step (drawn by the class and ``rng_key``, hence equal on every rank).
    A caption has the findings that ``labelled`` knows for its text, by key, or else those of its sample. A text without
    an image of its own that has findings belongs to images by these alone. With two ``views``, all rows of texts stand
    there twice: those of the second view are marked, and its captions are in other words.
    """

    mode: KeyMode
    texts: ClassTexts
    tokenizer: Tokenizer | None
    findings: FindingValues = FindingValues()
    labelled: Mapping[int, Findings] = field(default_factory=dict)
    captions: bool = False
    hide: Hide | None = None
    says_classes: bool = True
    views: int = 1

    def __call__(self, drawn: Sequence[Drawn], *, rng_key: Sequence[int], out: Tensor | None = None) -> Batch:
        """The batch of these samples; with ``out``, ``(views, rows, ...)``, its images are written and lie there.

        The images may already be rows of ``out``, in order.
        """
        say = cache(lambda label, key: self.texts.draw(label, rng=np.random.default_rng([*rng_key, key & _POSITIVE])))
        images = [d for d in drawn if d.image is not None]
        shown = [self._views(d, self._text_rows(d, say)) if self.tokenizer is not None else [] for d in drawn]
        rows: dict[_Text, int] = {}
        for row in (row for each in shown for row in each):
            rows[row] = rows.get(row, 0) + 1
        distinct = {text: k for k, text in enumerate(dict.fromkeys(row.text for row in rows))}
        tokens, mask = self._tokens(list(distinct))
        tokens, wanted = self._hidden(list(distinct), tokens, rng_key=rng_key)
        text_index = torch.tensor([distinct[row.text] for row in rows], dtype=torch.int64)
        belong = _belonging(drawn, shown, rows) if self.captions else None
        return Batch(
            images=_stack([d.image for d in images], None if out is None else out[0]),
            views=_stack([d.view for d in images], None if out is None else out[-1])
            if any(d.view is not None for d in images)
            else None,
            image_keys=keys_of([self._image_entries(d, say) for d in images]),
            tokens=tokens,
            token_mask=mask,
            text_index=text_index,
            text_keys=keys_of([row.keys for row in rows]),
            text_counts=torch.tensor(list(rows.values()), dtype=torch.float32),
            captions=None
            if belong is None
            else _captions(*belong, text_index, tokens=tokens, mask=mask, wanted=wanted),
            ids=tuple(f"{d.source}/{d.sample.id}" for d in drawn),
        )

    def _tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        if self.tokenizer is None:
            return torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.bool)
        return self.tokenizer(texts)

    def _hidden(self, texts: list[str], tokens: Tensor, *, rng_key: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The tokens of distinct texts with words hidden, and what is hidden where."""
        wanted = torch.full_like(tokens, NOTHING)
        for row, text in enumerate(texts if self.hide is not None else ()):
            assert self.hide is not None
            rng = np.random.default_rng([*rng_key, 1, text_key(text) & _POSITIVE])
            tokens[row], wanted[row] = self.hide(text, tokens[row], rng=rng)
        return tokens, wanted

    def _text_rows(self, drawn: Drawn, say: Say) -> list[_Text]:
        """The texts of a sample, its caption first."""
        shown = self._shown(drawn, say)
        said = [self._caption_findings(drawn) if entry[1] is TextType.CAPTION else () for _, entry in shown]
        if drawn.image is None and drawn.sample.findings:
            return [_Text(text, findings or (entry,)) for (text, entry), findings in zip(shown, said, strict=True)]
        if self.mode not in ("sample", "label"):
            return [_Text(text, (entry, *findings)) for (text, entry), findings in zip(shown, said, strict=True)]
        # One key a row: a text stands for its whole sample, what was mixed into it included (A = M Mᵀ).
        entries = tuple(entry for entry in self._image_entries(drawn, say) if entry[1] is not TextType.FINDING)
        return [_Text(text, (*entries, *findings)) for (text, _), findings in zip(shown, said, strict=True)]

    def _views(self, drawn: Drawn, rows: list[_Text]) -> list[_Text]:
        if self.views == 1:
            return rows
        other = rows if drawn.other is None else [_Text(drawn.other, rows[0].keys), *rows[1:]]
        return rows + [_Text(row.text, (*row.keys, _SECOND)) for row in other]

    def _caption_findings(self, drawn: Drawn) -> tuple[Entry, ...]:
        assert drawn.caption is not None
        found = self.labelled.get(text_key(drawn.caption)) if self.labelled else None
        return self.findings.entries(drawn.sample.findings if found is None else found)

    def _image_entries(self, drawn: Drawn, say: Say) -> list[Entry]:
        own = [*self._entries(drawn, say), *self.findings.entries(drawn.sample.findings)]
        if drawn.partner is None:
            return own
        mixed_in = [*self._entries(drawn.partner, say), *self.findings.entries(drawn.partner.sample.findings)]
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
        for label in drawn.sample.labels if self.says_classes else ():
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


def _belonging(
    drawn: Sequence[Drawn], shown: Sequence[Sequence[_Text]], rows: Mapping[_Text, int]
) -> tuple[Tensor, Tensor]:
    """The rows of images that show a caption, and of its text."""
    place = {row: k for k, row in enumerate(rows)}
    pairs, image = [], 0
    for each, texts in zip(drawn, shown, strict=True):
        if each.image is not None and each.caption is not None and texts:
            pairs.append((image, place[texts[0]]))
        image += each.image is not None
    images, captions = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return images, captions


def _captions(
    images: Tensor, texts: Tensor, text_index: Tensor, *, tokens: Tensor, mask: Tensor, wanted: Tensor
) -> Captions:
    own = text_index[texts]
    return Captions(images=images, texts=texts, tokens=tokens[own], mask=mask[own], wanted=wanted[own])


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
