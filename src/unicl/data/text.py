"""Texts to tokens: clean, tokenise, pad to the longest text at hand."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Final, Self

import numpy as np
import regex
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor

from unicl.data import tokens as published
from unicl.data.clean import Cleaning, clean, prepare
from unicl.data.pieces import Pieces
from unicl.data.reports.sentences import count_words, places
from unicl.errors import UserError, suggest

__all__ = [
    "NAMES",
    "Cleaning",
    "Tokenizer",
    "changed",
    "clean",
    "languages",
    "load_tokenizer",
    "mirror",
    "padded_with_end",
    "sentences",
    "sentences_of",
    "train_tokenizer",
    "without_end",
]

NAMES: Final = ("clip", "chinese", "train")
_SIDES: Final = regex.compile(r"\b(?:left|right)(?:most|wards?|hand)?\b|左(?!右)|(?<!左)右", regex.IGNORECASE)
_OTHER: Final = {
    **{f"left{end}": f"right{end}" for end in ("", "most", "ward", "wards", "hand")},
    **{f"right{end}": f"left{end}" for end in ("", "most", "ward", "wards", "hand")},
    "左": "右",
    "右": "左",
}
_DELETED: Final = 0.1
_SPECIAL: Final = ("<pad>", "<bos>", "<eos>")
_BYTES: Final = tuple(f"<0x{byte:02X}>" for byte in range(256))
_SETTINGS: Final = "tokenizer_settings.json"
_SCRIPTS: Final = (
    ("kana", regex.compile(r"[\p{Hiragana}\p{Katakana}]")),
    ("zh", regex.compile(r"\p{Han}")),
    ("ko", regex.compile(r"\p{Hangul}")),
    ("ru", regex.compile(r"\p{Cyrillic}")),
    ("ar", regex.compile(r"\p{Arabic}")),
    ("he", regex.compile(r"\p{Hebrew}")),
    ("hi", regex.compile(r"\p{Devanagari}")),
    ("th", regex.compile(r"\p{Thai}")),
    ("el", regex.compile(r"\p{Greek}")),
    ("latin", regex.compile(r"\p{Latin}")),
)


def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a report, by full stops and lines; numbers of lists stay out, a text without an end is one."""
    return tuple(text[start:end] for start, end in places(text)) or (text,)


def sentences_of(texts: Iterable[str], *, least: int = 1) -> tuple[str, ...]:
    """The sentences of a sample's texts that have ``least`` words; if none has as many, all of them."""
    found = tuple(sentence for text in texts for sentence in sentences(text))
    return tuple(each for each in found if count_words(each) >= least) or found


def changed(text: str, *, rng: np.random.Generator) -> str:
    """The text with two words exchanged or, as often, each left out with probability 0.1 (Wei and Zou 2019, EDA).

    Words stand between blanks, and a text of one word stays as it is. EDA's third change, to a synonym, takes WordNet,
    and is left out.
    """
    words = text.split()
    if len(words) < 2:
        return text
    if rng.random() < 0.5:
        first, second = rng.choice(len(words), 2, replace=False)
        words[first], words[second] = words[second], words[first]
    else:
        stay = rng.random(len(words)) >= _DELETED
        words = [word for word, stays in zip(words, stay, strict=True) if stays] or [words[rng.integers(len(words))]]
    return " ".join(words)


def mirror(text: str) -> str:
    """A text of the same picture turned left to right: "left" and "right" change places (VirTex's code)."""
    return str(_SIDES.sub(lambda found: _cased(_OTHER[found[0].casefold()], like=found[0]), text))


def languages(text: str) -> str:
    """A guess by script: "zh", "ja", "ko", "ru", "ar", "he", "hi", "th", "el", "latin", or "none" without letters.

    Scripts that serve many languages stand for the commonest one; Han with kana is Japanese.
    """
    counts = Counter({name: len(pattern.findall(text)) for name, pattern in _SCRIPTS})
    if counts["kana"]:
        counts["ja"] = counts.pop("kana") + counts.pop("zh")
    name, count = counts.most_common(1)[0]
    return name if count else "none"


def _cased(word: str, *, like: str) -> str:
    return word.upper() if like.isupper() else word.capitalize() if like[:1].isupper() else word


class Tokenizer:
    """Texts to padded token ids, with a start and an end mark where the vocabulary has them.

    ``context`` is the longest row in tokens; a longer text is cut and keeps its end mark as last token. If ``fixed``,
    every row is that long, and its padding counts as text (SigLIP, LiT).
    Safe to call from several threads at once.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        name: str,
        context: int,
        eos_id: int,
        pad_id: int,
        cleaning: Cleaning = "none",
        fixed: bool = False,
    ) -> None:
        # The library warns in every forked loader process unless this is set.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        inner.no_truncation()
        inner.no_padding()
        marks = len(inner.encode("").ids)
        if context <= marks:
            raise UserError(f"a context of {context} tokens has no room for a word; give at least {marks + 1}")
        self.inner: Final = inner
        self.name: Final = name
        self.context: Final = context
        self.eos_id: Final = eos_id
        self.pad_id: Final = pad_id
        self.cleaning: Final = cleaning
        self.fixed: Final = fixed
        self.vocab_size: Final[int] = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens ``(N, L)`` int64 and mask ``(N, L)`` bool, true where a token is real; L is the longest text here."""
        rows = [self._cut(ids) for ids in self._encode(texts)]
        longest = self.context if self.fixed else max(map(len, rows), default=1) or 1
        tokens = torch.tensor([ids + [self.pad_id] * (longest - len(ids)) for ids in rows], dtype=torch.int64)
        lengths = torch.tensor([longest if self.fixed else len(ids) for ids in rows], dtype=torch.int64)
        return tokens.view(len(rows), longest), torch.arange(longest) < lengths[:, None]

    @cached_property
    def pieces(self) -> Pieces:
        """How the entries make words."""
        known = self.inner.get_vocab(with_added_tokens=True)
        entries = [""] * self.vocab_size
        for entry, number in known.items():
            entries[number] = entry
        return Pieces.of(entries, marks=self.inner.encode("").ids)

    def spans(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """The text as it was cleaned, and where in it each of its tokens stands; a mark stands nowhere, (0, 0)."""
        cleaned = prepare(text, self.cleaning)
        encoding = self.inner.encode(cleaned)
        spans: list[tuple[int, int]] = list(encoding.offsets)
        if len(spans) > self.context:
            spans = [*spans[: self.context - 1], (0, 0) if encoding.ids[-1] == self.eos_id else spans[self.context - 1]]
        return cleaned, spans

    def lengths(self, texts: Sequence[str]) -> Tensor:
        """``(N,)`` int64: tokens of each text with its marks, before any cut."""
        return torch.tensor([len(ids) for ids in self._encode(texts)], dtype=torch.int64)

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` (the `tokenizers` library's form) and a small file beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.inner.save(str(folder / "tokenizer.json"))
        settings = {
            "name": self.name,
            "context": self.context,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "cleaning": self.cleaning,
            "fixed": self.fixed,
        }
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, context: int | None = None, fixed: bool | None = None) -> Self:
        """Read what `save` wrote; None keeps what was saved."""
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(
            inner,
            name=settings["name"],
            context=context or settings["context"],
            eos_id=settings["eos_id"],
            pad_id=settings["pad_id"],
            cleaning=settings["cleaning"],
            fixed=settings.get("fixed", False) if fixed is None else fixed,
        )

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        cleaned = [prepare(text, self.cleaning) for text in texts]
        return [encoding.ids for encoding in self.inner.encode_batch_fast(cleaned)]

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.context:
            return ids
        last = [self.eos_id] if ids[-1] == self.eos_id else [ids[self.context - 1]]
        return ids[: self.context - 1] + last


def load_tokenizer(name: str, *, context: int, fixed: bool = False) -> Tokenizer:
    """A tokenizer by name or place.

    "clip": CLIP's BPE of 49,408 entries, its vocabulary read from the installed open_clip package; "chinese": BERT's
    WordPiece of 21,128 entries from the installed cn_clip package; else a folder that holds a saved tokenizer
    (ours, or one that `unicl.data.tokens.read` knows), or a file of one, such as a ``tokenizer.json``.

    Raises `UserError` if the package or the place is missing.
    """
    if name in ("clip", "chinese"):
        found = published.clip() if name == "clip" else published.chinese()
        return _tokenizer(found, name=name, context=context, fixed=fixed)
    place = Path(name).expanduser()
    if not place.exists():
        raise UserError(
            f"no tokenizer {name!r}: it is neither one of {', '.join(NAMES)} nor a file or folder{suggest(name, NAMES)}"
        )
    if (place / _SETTINGS).exists():
        return Tokenizer.load(place, context=context, fixed=fixed or None)
    return _tokenizer(published.read(place), name=place.name, context=context, fixed=fixed)


def is_clips(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has CLIP's entries with CLIP's numbers, whatever its marks are called.

    False as well if CLIP's vocabulary is not installed to compare it with.
    """
    if tokenizer.name == "clip":
        return True
    try:
        clips = load_tokenizer("clip", context=tokenizer.context)
    except UserError:
        return False
    marks = clips.vocab_size - 2
    own, theirs = ({k: v for k, v in each.inner.get_vocab().items() if v < marks} for each in (tokenizer, clips))
    return own == theirs and (tokenizer.eos_id, tokenizer.vocab_size) == (clips.eos_id, clips.vocab_size)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, context: int, fixed: bool = False) -> Tokenizer:
    """A BPE over the characters of these texts, with bytes for any other character (Sennrich et al. 2016).

    Works for languages with and without blanks; equal texts give equal tokenizers. The vocabulary has at most
    ``vocab_size`` entries, fewer for few texts: 3 marks, 256 bytes, the characters seen, then merges.

    Raises `UserError` if there is no text or the vocabulary is too small.
    """
    room = vocab_size - len(_SPECIAL) - len(_BYTES)
    if room < 32:
        raise UserError(f"a vocabulary of {vocab_size} is too small to train; give at least {vocab_size - room + 32}")
    cleaned: Iterator[str] = (prepare(text, "fold") for text in texts)
    some = next((text for text in cleaned if text), None)
    if some is None:
        raise UserError("there is no text to train a tokenizer on; give data with captions or class names")
    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*_SPECIAL, *_BYTES],
        limit_alphabet=room * 3 // 4,
        show_progress=False,
    )
    inner.train_from_iterator(chain([some], cleaned), trainer=trainer)
    inner = published.without_added(inner)
    published.with_marks(inner, start=_SPECIAL[1], end=_SPECIAL[2])
    return Tokenizer(inner, name="train", context=context, eos_id=2, pad_id=0, cleaning="fold", fixed=fixed)


def without_end(tokenizer: Tokenizer) -> Tokenizer:
    """The same without a mark at the end of texts (LiT's BERT: [CLS] and words, no [SEP]; big_vision, pp_ops)."""
    inner = tokenizers.Tokenizer.from_str(tokenizer.inner.to_str())
    start = tokenizer.inner.encode("").tokens[:1]
    published.with_marks(inner, start=start[0] if start else None, end=None)
    return _tokenizer(
        published.Vocabulary(inner=inner, eos_id=-1, pad_id=tokenizer.pad_id, cleaning=tokenizer.cleaning),
        name=tokenizer.name,
        context=tokenizer.context,
        fixed=tokenizer.fixed,
    )


def padded_with_end(tokenizer: Tokenizer) -> Tokenizer:
    """The same with rows always whole, filled with the end mark, so that their last token is one (LiT: "sticky")."""
    return _tokenizer(
        published.Vocabulary(
            inner=tokenizer.inner, eos_id=tokenizer.eos_id, pad_id=tokenizer.eos_id, cleaning=tokenizer.cleaning
        ),
        name=tokenizer.name,
        context=tokenizer.context,
        fixed=True,
    )


def _tokenizer(found: published.Vocabulary, *, name: str, context: int, fixed: bool) -> Tokenizer:
    return Tokenizer(
        found.inner,
        name=name,
        context=context,
        eos_id=found.eos_id,
        pad_id=found.pad_id,
        cleaning=found.cleaning,
        fixed=fixed,
    )
