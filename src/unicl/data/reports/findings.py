"""Findings of sentences and reports: what is there, what is not, and what may be, by medspacy's ConText.

ConText (Harkema et al. 2009, "ConText: an algorithm for determining negation, experiencer, and temporal status from
clinical reports") lets cues such as "no evidence of" reach the findings before or behind them in a sentence, up to a
word such as "but" that ends their reach.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from unicl.data.reports.sentences import UNSPACED
from unicl.data.reports.vocabulary import ENGLISH, NEAR, Cue, Nothing, Terms, Vocabulary, pattern, spread
from unicl.errors import UserError
from unicl.space import Finding, Findings

KINDS: Final[Mapping[str, Finding]] = MappingProxyType(
    {
        "NEGATED_EXISTENCE": Finding.ABSENT,
        "POSSIBLE_EXISTENCE": Finding.UNCERTAIN,
        "HISTORICAL": Finding.UNMENTIONED,
        "HYPOTHETICAL": Finding.UNMENTIONED,
        "FAMILY": Finding.UNMENTIONED,
    }
)
"""What a category of medspacy's rules says of a finding; another time, a condition or a relative is no finding."""
STRENGTH: Final = (Finding.PRESENT, Finding.UNCERTAIN, Finding.ABSENT)
"""Of several mentions in one text the strongest counts, as in CheXpert's labeler (as remembered)."""
SETTLED: Final = "the words themselves"
_GROUP: Final = "findings"
_DENIES: Final = "NEGATED_EXISTENCE"
_STOP: Final = "END OF WHAT IS ABSENT"
_SILENT: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {"ends": ("SILENT", "TERMINATE"), "ends absent": (_STOP, "FORWARD"), "none": ("SILENT", "PSEUDO")}
)
"""The category and direction of cues that say nothing themselves."""
_DIRECTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {"before": "FORWARD", "after": "BACKWARD", "around": "BIDIRECTIONAL"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """One place of a text that speaks of a finding, and the words that decided what it says.

    ``start`` and ``end`` count characters; ``value`` is UNMENTIONED if it does not count (history, family, conditions).
    """

    finding: str
    value: Finding
    start: int
    end: int
    cue: str = ""

    def moved(self, by: int) -> "Mention":
        """The same mention in a text that begins so many characters before."""
        return replace(self, start=self.start + by, end=self.end + by)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A match of a finding's words: ``last`` is where those begin that a cue has to reach."""

    finding: str
    start: int
    end: int
    last: int
    says: Finding | None = None


class Extractor:
    """Finds what a sentence says of the findings of a vocabulary; equal sentences are read once.

    Made in the process that uses it. Raises `UserError` if medspacy is missing.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        language = vocabulary.language
        self._readers = tuple(_Reader.of(terms, language=language) for terms in vocabulary.findings)
        self._context = _Context(vocabulary.cues, language=language)
        others = vocabulary.nothing.others if vocabulary.nothing else ()
        self._others = _Reader.of(Terms(name="", terms=others), language=language) if others else None
        self._cache: dict[str, tuple[Mention, ...]] = {}

    def __call__(self, sentence: str) -> tuple[Mention, ...]:
        """All mentions in one sentence, in the order of their places.

        Things that are no finding of the list, but speak against finding nothing, are mentions of the finding "".
        """
        known = self._cache.get(sentence)
        if known is None:
            known = self._cache[sentence] = self._mentions(sentence)
        return known

    def _mentions(self, sentence: str) -> tuple[Mention, ...]:
        readers = (*self._readers, self._others) if self._others else self._readers
        found = [match for reader in readers for match in reader.read(sentence)]
        if not found:
            return ()
        judged = self._context.judge(sentence, [(each.last, each.end) for each in found if each.says is None])
        mentions = []
        for each in found:
            value, cue = (each.says, SETTLED) if each.says is not None else judged[each.last, each.end]
            mentions.append(Mention(finding=each.finding, value=value, start=each.start, end=each.end, cue=cue))
        return tuple(sorted(mentions, key=lambda mention: (mention.start, mention.finding)))


def resolve(mentions: Iterable[Mention], vocabulary: Vocabulary) -> Findings:
    """What the mentions of one text say of every finding of a vocabulary: the strongest of each counts.

    The finding for nothing is PRESENT if no other is present or uncertain, and UNMENTIONED if one is.
    """
    said: dict[str, set[Finding]] = {}
    for mention in mentions:
        said.setdefault(mention.finding, set()).add(mention.value)
    values = {terms.name: _strongest(said.get(terms.name, set())) for terms in vocabulary.findings}
    if vocabulary.nothing is None:
        return tuple(values.items())
    none = _nothing(values, others=_strongest(said.get("", set())), nothing=vocabulary.nothing)
    return ((vocabulary.nothing.name, none), *values.items())


def _strongest(said: set[Finding]) -> Finding:
    return next((value for value in STRENGTH if value in said), Finding.UNMENTIONED)


def _nothing(values: Mapping[str, Finding], *, others: Finding, nothing: Nothing) -> Finding:
    against = {value for name, value in values.items() if name not in nothing.despite} | {others}
    return Finding.UNMENTIONED if against & {Finding.PRESENT, Finding.UNCERTAIN} else Finding.PRESENT


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """The expressions of one finding."""

    name: str
    terms: re.Pattern[str] | None
    settled: tuple[tuple[re.Pattern[str], Finding], ...]
    apart: re.Pattern[str] | None

    @classmethod
    def of(cls, terms: Terms, *, language: str) -> "_Reader":
        both = ((terms.absent, Finding.ABSENT), (terms.uncertain, Finding.UNCERTAIN))
        settled = [(pattern(phrases, whole=True, language=language), value) for phrases, value in both]
        return cls(
            name=terms.name,
            terms=pattern(terms.terms, language=language),
            settled=tuple((found, value) for found, value in settled if found is not None),
            apart=pattern(terms.apart, language=language),
        )

    def read(self, sentence: str) -> Iterator[_Found]:
        """Matches in a sentence: phrases that settle the matter come before terms in the same place."""
        taken = [] if self.apart is None else [match.span() for match in self.apart.finditer(sentence)]
        for expression, says in (*self.settled, (self.terms, None)):
            if expression is None:
                continue
            for match in expression.finditer(sentence):
                start, end = match.span()
                if all(end <= first or last <= start for first, last in taken):
                    taken.append((start, end))
                    last = match.start(match.lastindex or 0)
                    yield _Found(finding=self.name, start=start, end=end, last=last, says=says)


class _Context:
    """medspacy's ConText over one sentence at a time: its own rules for English, and the cues of a vocabulary."""

    def __init__(self, cues: Sequence[Cue], *, language: str) -> None:
        parts = _medspacy()
        self._language = parts["blank"](ENGLISH)
        self._language.tokenizer = _tokenizer(parts["tokenizer"](self._language))
        self._span = parts["span"]
        self._context = parts["context"](self._language, rules=None, input_span_type="group", span_group_name=_GROUP)
        rules = {words: parts["rule"](**_rule(cue, words)) for cue in cues for words in spread(cue.words)}
        own = parts["rule"].from_json(self._context.DEFAULT_RULES_FILEPATH) if language == ENGLISH else []
        # Of two rules with the same words, ours; some of medspacy's suit the notes of a ward and not an image.
        every = [*(rule for rule in own if rule.literal.casefold() not in rules), *rules.values()]
        for rule in every:
            if rule.category == _DENIES and rule.direction == "FORWARD":
                rule.terminated_by = {_STOP}
        # Matches nothing; medspacy warns at each sentence where no rule is a pattern.
        every.append(parts["rule"]("", "SILENT", pattern=[{"ORTH": ""}], direction="PSEUDO"))
        self._context.add(every)

    def judge(self, sentence: str, places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], tuple[Finding, str]]:
        """What is said at each place ``(start, end)`` of a sentence, and the cue that says so ("" if there is none)."""
        if not places:
            return {}
        document = self._language(sentence)
        for token in document:
            token.is_sent_start = token.i == 0
        spans = {place: document.char_span(*place, alignment_mode="expand") for place in places}
        # Equal spans would share their cues, so each is given once.
        targets = {(span.start, span.end): span for span in spans.values()}
        named = {place: self._span(document, *place, label="FINDING") for place in targets}
        document.spans[_GROUP] = list(named.values())
        self._context(document)
        return {place: _decided(named[span.start, span.end], document) for place, span in spans.items()}


def _decided(span: Any, document: Any) -> tuple[Finding, str]:
    """The nearest cue decides: "no effusion, possible pneumonia" leaves the effusion absent."""
    cues = [cue for cue in span._.modifiers if cue.category in KINDS]
    if not cues:
        return Finding.PRESENT, ""
    nearest = min(cues, key=lambda cue: max(span.start - cue.modifier_span[1], cue.modifier_span[0] - span.end))
    start, end = nearest.modifier_span
    return KINDS[nearest.category], document[start:end].text


def _rule(cue: Cue, words: str) -> dict[str, Any]:
    if cue.side in _SILENT:
        category, direction = _SILENT[cue.side]
        return {"literal": words, "category": category, "direction": direction}
    is_near = cue.side.startswith(("just", "around"))
    return {
        "literal": words,
        "category": next(name for name, says in KINDS.items() if says is cue.says),
        "direction": _DIRECTIONS[cue.side.removeprefix("just ")],
        "max_scope": NEAR if is_near else None,
    }


def _tokenizer(tokenizer: Any) -> Any:
    """medspacy's, with each sign of a script without spaces as a token of its own."""
    infixes = tokenizer.infix_finditer

    def split(text: str) -> list[re.Match[str]]:
        return sorted((*infixes(text), *UNSPACED.finditer(text)), key=re.Match.start)

    tokenizer.infix_finditer = split
    return tokenizer


def _medspacy() -> dict[str, Any]:
    """What is used of medspacy and spaCy."""
    try:
        # medspacy turns off all warnings of the process when it is imported.
        with warnings.catch_warnings():
            from medspacy.context import ConText, ConTextRule
            from medspacy.custom_tokenizer import create_medspacy_tokenizer
            from spacy import blank
            from spacy.tokens import Span
    except ImportError as error:
        raise UserError(
            f"findings are found by medspacy, which cannot be imported ({error}); run: pip install 'unicl[findings]'"
        ) from error
    return {
        "blank": blank,
        "tokenizer": create_medspacy_tokenizer,
        "span": Span,
        "context": ConText,
        "rule": ConTextRule,
    }
