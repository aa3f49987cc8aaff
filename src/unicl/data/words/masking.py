"""Words of captions that are hidden, to be found again from the picture: nouns, adjectives and verbs.

ICMLM's task (Sariyildiz et al. 2020, section 3.3): one concept word of a caption is masked, and the language model
reads the masked caption.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unicl.data.clean import prepare
from unicl.data.text import Tokenizer
from unicl.data.words.phrases import Parsed
from unicl.data.words.tags import SPEECH, Speech, most_frequent, spoken
from unicl.errors import UserError
from unicl.space import NOTHING

MASKS: Final = ("[MASK]", "<mask>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """Which words may be hidden: the ``count`` most frequent lemmas of the captions with these parts of speech.

    ``speech``: "nouns", "adjectives" (and nouns) or "verbs" (and both). A word that the tokenizer cuts into pieces is
    never hidden, so that one token says all of it.
    """

    speech: Speech = "verbs"
    count: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Concepts:
    """What may be hidden in captions, and what is left out because the tokenizer cuts it into pieces.

    ``whole`` and ``cut`` are lemmas, with how often they stand in captions as one token and in pieces: a lemma may be
    in both, by its forms. ``captions`` of ``among`` have a word to hide.
    """

    whole: Counter[str]
    cut: Counter[str]
    captions: int
    among: int

    def told(self) -> str:
        """One line for people, to be read before training."""
        left = ""
        if self.cut:
            often = ", ".join(lemma for lemma, _ in self.cut.most_common(3))
            left = f"; {self.cut.total():,} words in several tokens are never hidden ({often})"
        return (
            f"hides one word of a caption: {self.whole.total():,} words of {len(self.whole):,} concepts in "
            f"{self.captions:,} of {self.among:,} captions{left}"
        )


@dataclass(frozen=True, slots=True)
class HiddenWords:
    """Hides one concept word of a caption, each as likely; ``places`` are the tokens of those of each caption.

    ``mask`` is the token that is shown instead. A text that is not known stays as it is. ``concepts`` says what was
    found before.
    """

    places: dict[str, tuple[int, ...]]
    mask: int
    concepts: Concepts

    def __call__(self, text: str, tokens: Tensor, /, *, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """From a text and its tokens ``(L,)``: the tokens to show, and those that are hidden, `NOTHING` elsewhere."""
        wanted = torch.full_like(tokens, NOTHING)
        places = self.places.get(text)
        if not places:
            return tokens, wanted
        place = places[rng.integers(len(places))]
        shown = tokens.clone()
        wanted[place], shown[place] = tokens[place], self.mask
        return shown, wanted


def hidden_words(
    captions: Counter[str], read: Iterable[Parsed | None], settings: Hidden, *, tokenizer: Tokenizer
) -> HiddenWords:
    """What hides the words of these captions; ``read`` are these in words, in their order.

    A tokenizer without a mask of its own shows padding in a word's place.

    Raises `UserError` if no caption has such a word.
    """
    found: dict[str, list[_Found]] = {}
    seen: Counter[str] = Counter()
    for caption, parsed in zip(captions, read, strict=True):
        found[caption] = [] if parsed is None else _words(caption, parsed, settings.speech, tokenizer=tokenizer)
        for word in found[caption]:
            seen[word.lemma] += captions[caption]
    kept = most_frequent(seen, settings.count)
    whole, cut = Counter[str](), Counter[str]()
    places: dict[str, tuple[int, ...]] = {}
    for caption, words in found.items():
        asked = [word for word in words if word.lemma in kept]
        places[caption] = tuple(word.place for word in asked if word.place is not None)
        for word in asked:
            (cut if word.place is None else whole)[word.lemma] += captions[caption]
    if not whole:
        raise UserError(_nothing(settings.speech, cut, tokenizer=tokenizer))
    some = sum(captions[caption] for caption, each in places.items() if each)
    return HiddenWords(
        places,
        mask_of(tokenizer),
        Concepts(whole=whole, cut=cut, captions=some, among=captions.total()),
    )


def mask_of(tokenizer: Tokenizer) -> int:
    """The token that stands for a hidden one: the tokenizer's mask, or else its padding."""
    ids = (tokenizer.inner.token_to_id(mask) for mask in MASKS)
    return next((number for number in ids if number is not None), tokenizer.pad_id)


class _Found(NamedTuple):
    """A word of a caption: its ``place`` among the tokens, None if it is several of them."""

    lemma: str
    place: int | None


def _words(caption: str, parsed: Parsed, speech: Speech, *, tokenizer: Tokenizer) -> list[_Found]:
    """The words of these parts of speech, as far as the tokenizer reads the caption."""
    cleaned, spans = tokenizer.spans(caption)
    read = max((end for _, end in spans), default=0)
    tokens = {_bare(cleaned, start, end): place for place, (start, end) in enumerate(spans) if start < end}
    found, at = [], 0
    for word in parsed.words:
        form = prepare(word.text, tokenizer.cleaning)
        start = cleaned.find(form, at)
        if not form or start < 0:
            continue
        at = start + len(form)
        if word.part in SPEECH[speech] and at <= read:
            found.append(_Found(word.lemma, tokens.get((start, at))))
    return found


def _nothing(speech: Speech, cut: Counter[str], *, tokenizer: Tokenizer) -> str:
    if not cut:
        return f"no caption has {spoken(speech)} to hide; captions in English and Chinese are read"
    often = ", ".join(lemma for lemma, _ in cut.most_common(3))
    return (
        f"no caption has a word to hide: all {cut.total():,} that {spoken(speech)} could be ({often}) are cut into "
        f"several tokens by the tokenizer {tokenizer.name!r}; take a language model of the captions' language, whose "
        "vocabulary has whole words"
    )


def _bare(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the blanks at its ends, which some tokenizers count in."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
