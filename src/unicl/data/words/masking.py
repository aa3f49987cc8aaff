"""Words of captions that are hidden, to be found again from the picture: nouns, adjectives and verbs.

ICMLM's task (Sariyildiz et al. 2020, section 3.3): one concept word of a caption is masked, and the language model
reads the masked caption.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from unicl.data.clean import prepare
from unicl.data.text import Tokenizer
from unicl.data.words.phrases import Parsed
from unicl.data.words.tags import SPEECH, Speech, most_frequent
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


@dataclass(frozen=True, slots=True)
class HiddenWords:
    """Hides one concept word of a caption, each as likely; ``places`` are the tokens of those of each caption.

    ``mask`` is the token that is shown instead. A text that is not known stays as it is.
    """

    places: dict[str, tuple[int, ...]]
    mask: int

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
    found: dict[str, tuple[tuple[int, str], ...]] = {}
    seen: Counter[str] = Counter()
    for caption, parsed in zip(captions, read, strict=True):
        if parsed is None:
            continue
        for word in parsed.words:
            if word.part in SPEECH[settings.speech]:
                seen[word.lemma] += captions[caption]
        found[caption] = tuple(_whole_words(caption, parsed, settings.speech, tokenizer=tokenizer))
    kept = most_frequent(seen, settings.count)
    places = {caption: tuple(place for place, lemma in several if lemma in kept) for caption, several in found.items()}
    if not any(places.values()):
        raise UserError(
            f"no caption has a word to hide ({', '.join(sorted(SPEECH[settings.speech]))}) that is one token of the "
            f"tokenizer {tokenizer.name!r}; captions in English and Chinese are read, and a larger vocabulary has "
            "more whole words"
        )
    return HiddenWords(places, mask_of(tokenizer))


def mask_of(tokenizer: Tokenizer) -> int:
    """The token that stands for a hidden one: the tokenizer's mask, or else its padding."""
    ids = (tokenizer.inner.token_to_id(mask) for mask in MASKS)
    return next((number for number in ids if number is not None), tokenizer.pad_id)


def _whole_words(caption: str, parsed: Parsed, speech: Speech, *, tokenizer: Tokenizer) -> "list[tuple[int, str]]":
    """The token and the lemma of each word of these parts of speech that is one token."""
    cleaned, spans = tokenizer.spans(caption)
    tokens = {_bare(cleaned, start, end): place for place, (start, end) in enumerate(spans) if start < end}
    found, at = [], 0
    for word in parsed.words:
        form = prepare(word.text, tokenizer.cleaning)
        start = cleaned.find(form, at)
        if not form or start < 0:
            continue
        at = start + len(form)
        place = tokens.get((start, at))
        if place is not None and word.part in SPEECH[speech]:
            found.append((place, word.lemma))
    return found


def _bare(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the blanks at its ends, which some tokenizers count in."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
