"""Vocabularies of findings: which words of a text speak of which finding, and what says that it is not there."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import yaml

from unicl.data.reports.sentences import UNSPACED
from unicl.errors import UserError, suggest
from unicl.space import Finding

BUILT_IN: Final = ("chexpert",)
ENGLISH: Final = "en"
SHARED: Final = "cues"
"""The cues that every English vocabulary has: what reports say of certainty beyond the rules that medspacy brings."""
GAP: Final = "..."
REACH: Final = 5
"""How many words a gap holds at most."""
NEAR: Final = 4
"""How far a cue that stands just before, just after or around a finding may be from it, in words."""
SAID: Final[Mapping[str, Finding]] = MappingProxyType(
    {"absent": Finding.ABSENT, "uncertain": Finding.UNCERTAIN, "apart": Finding.UNMENTIONED}
)
SIDES: Final[tuple["Side", ...]] = ("before", "after", "just before", "just after", "around")
SILENT: Final[tuple["Side", ...]] = ("ends", "ends absent", "none")

_GAP: Final = rf"(?:[\s/-]+(?!(?:but|without|however|versus|vs|or)\b)\w+){{0,{REACH}}}?"
_LETTER: Final = UNSPACED.pattern.replace("[", r"[^\W", 1)
_FROM: Final = f"(?<!{_LETTER})"
_TO: Final = f"(?!{_LETTER})"
"""The edges of a word, which may stand right beside the signs of a script without spaces."""
_NO_SPACE_GAP: Final = rf"\w{{0,{REACH}}}?"
_NO_SPACE_WHOLE: Final = rf"(?:(?![不无無未没沒非])\w){{0,{REACH}}}?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How texts speak of the finding ``name``.

    ``terms`` name it, and words around them decide whether it is there; ``absent`` and ``uncertain`` say that it is
    not, or may be, there by themselves; ``apart`` are other things that contain a term's words.
    """

    name: str
    terms: tuple[str, ...]
    absent: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """The finding called ``name``, which is there if no other is.

    Those in ``despite`` do not count against it; ``others`` are terms that do, though they are no findings of the list.
    """

    name: str
    despite: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


Side = Literal["before", "after", "just before", "just after", "around", "ends", "ends absent", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """Words that change what is said of findings, and where these stand.

    On ``side`` they stand anywhere before or after a finding, or within `NEAR` words of it, on either side if
    ``around``; ``ends`` ends the reach of other cues, ``ends absent`` that of those before it that say ABSENT, ``none``
    looks like a cue and is none. UNMENTIONED means another time or person, or a condition. Of two cues with the same
    words the later one counts.
    """

    words: str
    side: Side
    says: Finding = Finding.UNMENTIONED


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Findings, in the order of the table's columns, and the cues of the ``language`` that texts are in."""

    name: str
    findings: tuple[Terms, ...]
    nothing: Nothing | None = None
    cues: tuple[Cue, ...] = ()
    language: str = ENGLISH

    @property
    def names(self) -> tuple[str, ...]:
        """All columns; the one for nothing found is the first, as in CheXpert's tables."""
        first = () if self.nothing is None else (self.nothing.name,)
        return (*first, *(terms.name for terms in self.findings))

    def only(self, asked: Iterable[str]) -> "Vocabulary":
        """The findings that are asked for; raises `UserError` for one that the vocabulary lacks.

        The one for nothing found goes with the others: it means something only if all are looked for.
        """
        known = {terms.name.casefold(): terms for terms in self.findings}
        chosen = {}
        for name in (name.strip() for name in asked):
            if name.casefold() not in known:
                names = [terms.name for terms in self.findings]
                raise UserError(
                    f"the vocabulary {self.name!r} lacks the finding {name!r}{suggest(name, names)}; it has "
                    f"{', '.join(names)}"
                )
            chosen[name.casefold()] = known[name.casefold()]
        return replace(self, findings=tuple(chosen.values()), nothing=None)


def vocabulary(name: str) -> Vocabulary:
    """A vocabulary that comes with the library (`BUILT_IN`), or that of a YAML file.

    A file maps ``findings`` to names, and these to a list of terms or to ``terms``, ``absent``, ``uncertain``,
    ``except``; in another ``language`` than English it brings all its cues. Raises `UserError` that says where a file
    is not of this shape.
    """
    if name in BUILT_IN:
        return _read(_shipped(name), name=name)
    path = Path(name).expanduser()
    if not path.is_file():
        near = [entry.name for entry in path.parent.iterdir() if entry.is_file()] if path.parent.is_dir() else []
        raise UserError(
            f"there is no vocabulary {name!r}{suggest(path.name, (*BUILT_IN, *near))}; give {', '.join(BUILT_IN)}, or "
            "a YAML file with findings and their terms"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the vocabulary {name!r} cannot be read as UTF-8 text: {error}") from error
    return _read(text, name=name)


def pattern(phrases: Sequence[str], *, whole: bool = False, language: str = ENGLISH) -> re.Pattern[str] | None:
    """Phrases of a vocabulary as one expression, the longest first; None if there are none.

    The last group of a match is what a cue has to reach: the words behind the last gap, so that a cue in the gap stands
    before them. With ``whole`` a gap holds no negation. In another language than English, words may stand right beside
    the signs of a script without spaces.
    """
    if not phrases:
        return None
    longest = sorted(dict.fromkeys(phrases), key=len, reverse=True)
    # The other edges take twice the time.
    edges = (r"\b", r"\b") if language == ENGLISH else (_FROM, _TO)
    return re.compile("|".join(_expression(phrase, whole=whole, edges=edges) for phrase in longest), re.IGNORECASE)


def spread(phrase: str) -> tuple[str, ...]:
    """All that a phrase with ``a|b`` stands for."""
    return tuple(" ".join(words) for words in product(*(word.split("|") for word in phrase.split())))


def _expression(phrase: str, *, whole: bool, edges: tuple[str, str]) -> str:
    if UNSPACED.search(phrase):
        gap, space = _NO_SPACE_WHOLE if whole else _NO_SPACE_GAP, r"[\s/-]*"
    else:
        gap, space = _GAP.replace("but|", "but|no|not|") if whole else _GAP, r"[\s/-]+"
    parts = [part.split() for part in phrase.split(GAP)]
    *before, last = (space.join(_word(word) for word in words) for words in parts)
    start = "".join(f"{words}{gap}{space}" for words in before)
    first, end = edges
    return f"{'' if UNSPACED.match(phrase[0]) else first}{start}({last}){'' if UNSPACED.match(phrase[-1]) else end}"


def _word(word: str) -> str:
    # Where no space ends a word, any ending would be all that follows.
    choices = [
        re.escape(choice).replace(r"\*", "" if UNSPACED.search(choice) else r"\w*") for choice in word.split("|")
    ]
    return f"(?:{'|'.join(choices)})" if len(choices) > 1 else choices[0]


def _shipped(name: str) -> str:
    return (files("unicl.data") / "vocabularies" / f"{name}.yaml").read_text(encoding="utf-8")


def _read(text: str, *, name: str) -> Vocabulary:
    content = _yaml(text, where=name)
    _known(content, ("findings", "no finding", "cues", "language"), where=name)
    language = _text(content.get("language", ENGLISH), where=f"{name}: language").casefold()
    found = content.get("findings")
    if not isinstance(found, dict) or not found:
        raise UserError(
            f"{name}: 'findings' is {_shown(found)}; wanted are names with their terms, such as\n"
            "findings:\n  Pneumothorax: [pneumothora*, collapsed lung]"
        )
    findings = tuple(_terms(key, value, where=f"{name}: findings") for key, value in found.items())
    names = [terms.name for terms in findings]
    nothing = _nothing(content.get("no finding"), names=names, where=f"{name}: no finding")
    cues = _cues(content.get("cues"), where=f"{name}: cues")
    if language == ENGLISH:
        cues = (*_cues(_yaml(_shipped(SHARED), where=SHARED).get("cues"), where=SHARED), *cues)
    elif not any(cue.says is Finding.ABSENT for cue in cues):
        raise UserError(
            f"{name} is in the language {language!r}, and words that deny a finding are known here for {ENGLISH!r} "
            "alone; name them, such as\ncues:\n  absent: {before: [ohne, kein|keine]}"
        )
    return Vocabulary(name=name, findings=findings, nothing=nothing, cues=cues, language=language)


def _yaml(text: str, *, where: str) -> dict[object, object]:
    try:
        content = yaml.safe_load(text)
        _once(yaml.compose(text, yaml.SafeLoader), where=where)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}{line} is not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{where} holds {_shown(content)}; wanted is 'findings:' with names and their terms")
    return content


def _once(node: yaml.Node | None, *, where: str) -> None:
    """YAML lets a key stand twice and keeps the last; here that would lose the terms of the first."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, inner in node.value:
        name = str(key.value).casefold()
        if name in seen:
            line = key.start_mark.line + 1
            raise UserError(f"{where}, line {line}: {key.value!r} stands there a second time; keep one of them")
        seen.add(name)
        _once(inner, where=where)


def _terms(key: object, value: object, *, where: str) -> Terms:
    name = _text(key, where=where)
    where = f"{where}: {name}"
    if isinstance(value, list):
        return Terms(name=name, terms=_phrases(value, where=where))
    if not isinstance(value, dict):
        raise UserError(f"{where} is {_shown(value)}; wanted is a list of terms, or terms, absent, uncertain, except")
    _known(value, ("terms", "absent", "uncertain", "except"), where=where)
    others = {
        "apart" if key == "except" else key: _phrases(value.get(key, []), where=f"{where}: {key}", empty=True)
        for key in ("absent", "uncertain", "except")
    }
    return Terms(name=name, terms=_phrases(value.get("terms"), where=f"{where}: terms"), **others)


def _nothing(value: object, *, names: Sequence[str], where: str) -> Nothing | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise UserError(f"{where} is {_shown(value)}; wanted is its name, and 'despite' and 'others' if need be")
    _known(value, ("name", "despite", "others"), where=where)
    name = _text(value.get("name", "No Finding"), where=f"{where}: name")
    despite = _phrases(value.get("despite", []), where=f"{where}: despite", empty=True, plain=True)
    for other in despite:
        if other not in names:
            raise UserError(f"{where}: despite names {other!r}, which is no finding here{suggest(other, names)}")
    if name in names:
        raise UserError(f"{where}: {name!r} is among the findings too; leave one of them out")
    others = _phrases(value.get("others", []), where=f"{where}: others", empty=True)
    return Nothing(name=name, despite=despite, others=others)


def _cues(value: object, *, where: str) -> tuple[Cue, ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise UserError(f"{where} is {_shown(value)}; wanted are {', '.join((*SAID, *SILENT))}")
    _known(value, (*SAID, *SILENT), where=where)
    found = []
    for side in SILENT:
        phrases = _phrases(value.get(side, []), where=f"{where}: {side}", empty=True, plain=True)
        found += [Cue(words=words, side=side) for words in phrases]
    for key, says in SAID.items():
        sides = value.get(key, {})
        if not isinstance(sides, dict):
            raise UserError(f"{where}: {key} is {_shown(sides)}; wanted are lists called {', '.join(SIDES)}")
        _known(sides, SIDES, where=f"{where}: {key}")
        for side in SIDES:
            phrases = _phrases(sides.get(side, []), where=f"{where}: {key}: {side}", empty=True, plain=True)
            found += [Cue(words=words, side=side, says=says) for words in phrases]
    return tuple(found)


def _known(content: Mapping[object, object], keys: Sequence[str], *, where: str) -> None:
    for key in content:
        if key not in keys:
            raise UserError(f"{where} has the unknown entry {key!r}{suggest(str(key), keys)}; known: {', '.join(keys)}")


def _phrases(value: object, *, where: str, empty: bool = False, plain: bool = False) -> tuple[str, ...]:
    if not isinstance(value, list) or not (value or empty):
        raise UserError(f"{where} is {_shown(value)}; wanted is a list of words, such as [effusion*, pleural fluid]")
    phrases = tuple(" ".join(_text(item, where=where).split()) for item in value)
    for phrase in () if plain else phrases:
        parts = [part.strip() for part in phrase.split(GAP)]
        if not all(re.search(r"\w", part) for part in parts) or any(not word.strip("*") for word in phrase.split()):
            raise UserError(f"{where}: {phrase!r} lacks a word at '...' or '*'; write for example heart ... enlarge*")
    return phrases


def _text(value: object, *, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    hint = " (yes, no, on and off are not texts in YAML: put them in quotes)" if isinstance(value, bool) else ""
    raise UserError(f"{where} holds {_shown(value)}, but a text was wanted{hint}")


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]
