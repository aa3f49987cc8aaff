"""What a text says to a model: its words, the parts that they are made of, and where a label stands in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import regex

from unicl.data.text import Tokenizer
from unicl.errors import UserError
from unicl.towers.parts import TextParts, part_places, part_words

PLACE: Final = "{label}"
"""Where a template has its label (CLIP's prompts are written so)."""
_WORDS: Final = TextParts(words=True, marks="none")
_PUNCTUATION: Final = regex.compile(r"[\p{P}\s]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word as it stands at ``span`` of the cleaned text; ``parts`` are the text's parts that it is made of."""

    text: str
    span: tuple[int, int]
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """A text as a model reads it: ``parts`` says what each part is, marks by their names; ``cut`` if words fell out."""

    cleaned: str
    words: tuple[Word, ...]
    parts: tuple[str, ...]
    cut: bool

    @property
    def telling(self) -> tuple[Word, ...]:
        """The words that are more than punctuation, or all if there are no others."""
        return tuple(w for w in self.words if not _PUNCTUATION.fullmatch(w.text)) or self.words


def read_words(tokenizer: Tokenizer, text: str, *, parts: TextParts | None) -> Wording:
    """The words of a text and, if its tower has any, their parts; raises `UserError` if the text says nothing."""
    tokens, mask = tokenizer([text])
    cleaned, spans = tokenizer.spans(text)
    ids = tokens[0, : len(spans)].tolist()
    silent = {*tokenizer.pieces.marks.nonzero()[:, 0].tolist(), tokenizer.pad_id, _unknown(tokenizer)}
    if not cleaned.strip() or all(token in silent for token in ids):
        raise UserError(
            f"the text {text!r} says nothing to this model: its vocabulary has no entry for any of it; give other words"
        )
    places = [part_places(tokens, mask, settings=s, pieces=tokenizer.pieces)[0].tolist() for s in (_WORDS, parts) if s]
    own = places[1] if parts else [-1] * len(ids)
    found: dict[int, list[tuple[int, tuple[int, int]]]] = {}
    for word, part, span, token in zip(places[0], own, spans, ids, strict=False):
        if word >= 0 and token != tokenizer.pad_id:
            found.setdefault(word, []).append((part, span))
    words = tuple(_word(cleaned, pieces) for _, pieces in sorted(found.items()))
    return Wording(
        cleaned=cleaned,
        words=tuple(word for word in words if word.text),
        parts=part_words(tokenizer, text, settings=parts) if parts else (),
        cut=int(tokenizer.lengths([text])[0]) > tokenizer.context,
    )


def labelled(text: str, label: str) -> str:
    """The text with the label in its place; raises `UserError` if it has the place and there is no label."""
    if PLACE not in text:
        return text
    if not label.strip():
        raise UserError(f"the text {text!r} has a place for a label; say which with --label, such as --label balloon")
    return text.replace(PLACE, label)


def label_words(tokenizer: Tokenizer, template: str, *, label: str, parts: TextParts | None) -> tuple[Word, ...]:
    """The words of a text that are its label: where a template has it, or wherever it stands as whole words.

    ``template`` is the text as the user gave it. Raises `UserError` if the label is nowhere, with the words there are.
    """
    text = labelled(template, label)
    wording = read_words(tokenizer, text, parts=parts)
    wanted = tokenizer.spans(label)[0].strip()
    begin = len(tokenizer.spans(template.partition(PLACE)[0])[0].rstrip()) if PLACE in template else 0
    found = _runs(wording, wanted, begin=begin)
    if PLACE in template:
        found = found[:1]
    if not wanted or not found:
        listed = ", ".join(dict.fromkeys(word.text for word in wording.telling))
        raise UserError(f"the label {label!r} is not among the words of the text, which are: {listed}")
    return tuple(word for run in found for word in run)


def _runs(wording: Wording, wanted: str, *, begin: int) -> list[Sequence[Word]]:
    """Each run of whole words that reads as ``wanted``, from place ``begin`` of the cleaned text on."""
    starts = {word.span[0]: number for number, word in enumerate(wording.words)}
    ends = {word.span[1]: number for number, word in enumerate(wording.words)}
    runs: list[Sequence[Word]] = []
    for match in regex.finditer(regex.escape(wanted), wording.cleaned, flags=regex.IGNORECASE, pos=begin):
        first, last = starts.get(match.start()), ends.get(match.end())
        if first is not None and last is not None:
            runs.append(wording.words[first : last + 1])
    return runs


def _word(cleaned: str, pieces: Sequence[tuple[int, tuple[int, int]]]) -> Word:
    start, end = min(span[0] for _, span in pieces), max(span[1] for _, span in pieces)
    said = cleaned[start:end]
    start += len(said) - len(said.lstrip())
    parts = tuple(dict.fromkeys(part for part, _ in pieces if part >= 0))
    return Word(text=said.strip(), span=(start, start + len(said.strip())), parts=parts)


def _unknown(tokenizer: Tokenizer) -> int:
    name = getattr(tokenizer.inner.model, "unk_token", None)
    number = tokenizer.inner.token_to_id(name) if name else None
    return -1 if number is None else number
