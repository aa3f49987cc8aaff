"""Texts to tokens: clean, tokenise, pad to the longest text at hand."""

import gzip
import html
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Final, Literal, Self

import ftfy
import regex
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from unicl.errors import UserError, suggest

Cleaning = Literal["none", "bert", "lower", "fold"]
"""What happens to a text before its tokens: nothing; blanks around some Han; `clean` and lower case; that and NFKC."""

NAMES: Final = ("clip", "chinese", "train")
MERGES: Final = 49_152 - 256 - 2
"""Merges of CLIP's vocabulary that are in use, of the 262,144 in its file (CLIP, section 2.4)."""

_PLAIN: Final = re.compile(r"[ -%'-~]*")  # printable ASCII without "&": nothing that ftfy or html would change
_CLIP_WORDS: Final = r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_MISSED_HAN: Final = re.compile("([\U0002b820-\U0002b91f])")
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


def clean(text: str) -> str:
    """Broken encodings mended, HTML entities read, white space joined (CLIP's cleaning, without the lower case)."""
    if not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def languages(text: str) -> str:
    """A guess by script: "zh", "ja", "ko", "ru", "ar", "he", "hi", "th", "el", "latin", or "none" without letters.

    Scripts that serve many languages stand for the commonest one; Han with kana is Japanese.
    """
    counts = Counter({name: len(pattern.findall(text)) for name, pattern in _SCRIPTS})
    if counts["kana"]:
        counts["ja"] = counts.pop("kana") + counts.pop("zh")
    name, count = counts.most_common(1)[0]
    return name if count else "none"


class Tokenizer:
    """Texts to padded token ids, with a start and an end mark where the vocabulary has them.

    ``context`` is the longest row in tokens; a longer text is cut and keeps its end mark as last token.
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
        self.vocab_size: Final[int] = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens ``(N, L)`` int64 and mask ``(N, L)`` bool, true where a token is real; L is the longest text here."""
        rows = [self._cut(ids) for ids in self._encode(texts)]
        longest = max(map(len, rows), default=1) or 1
        tokens = torch.tensor([ids + [self.pad_id] * (longest - len(ids)) for ids in rows], dtype=torch.int64)
        lengths = torch.tensor([len(ids) for ids in rows], dtype=torch.int64)
        return tokens.view(len(rows), longest), torch.arange(longest) < lengths[:, None]

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
        }
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, context: int | None = None) -> Self:
        """Read what `save` wrote; None keeps the saved context."""
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(
            inner,
            name=settings["name"],
            context=context or settings["context"],
            eos_id=settings["eos_id"],
            pad_id=settings["pad_id"],
            cleaning=settings["cleaning"],
        )

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        cleaned = [_prepare(text, self.cleaning) for text in texts]
        return [encoding.ids for encoding in self.inner.encode_batch_fast(cleaned)]

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.context:
            return ids
        last = [self.eos_id] if ids[-1] == self.eos_id else [ids[self.context - 1]]
        return ids[: self.context - 1] + last


def load_tokenizer(name: str, *, context: int) -> Tokenizer:
    """A tokenizer by name or place.

    "clip": CLIP's BPE of 49,408 entries, its vocabulary read from the installed open_clip package; "chinese": BERT's
    WordPiece of 21,128 entries from the installed cn_clip package; else a folder that holds a saved tokenizer
    (ours, a ``tokenizer.json``, or anything that transformers' AutoTokenizer reads), or a ``tokenizer.json`` itself.

    Raises `UserError` if the package or the place is missing.
    """
    if name == "clip":
        return _clip(context)
    if name == "chinese":
        return _chinese(context)
    place = Path(name).expanduser()
    if not place.exists():
        raise UserError(
            f"no tokenizer {name!r}: it is neither one of {', '.join(NAMES)} nor a file or folder{suggest(name, NAMES)}"
        )
    if (place / _SETTINGS).exists():
        return Tokenizer.load(place, context=context)
    return _from_place(place, context=context)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, context: int) -> Tokenizer:
    """A BPE over the characters of these texts, with bytes for any other character (Sennrich et al. 2016).

    Works for languages with and without blanks; equal texts give equal tokenizers. The vocabulary has at most
    ``vocab_size`` entries, fewer for few texts: 3 marks, 256 bytes, the characters seen, then merges.

    Raises `UserError` if there is no text or the vocabulary is too small.
    """
    room = vocab_size - len(_SPECIAL) - len(_BYTES)
    if room < 32:
        raise UserError(f"a vocabulary of {vocab_size} is too small to train; give at least {vocab_size - room + 32}")
    cleaned: Iterator[str] = (_prepare(text, "fold") for text in texts)
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
    inner = _without_added_tokens(inner)
    return Tokenizer(
        _marked(inner, _SPECIAL[1:], ids=(1, 2)), name="train", context=context, eos_id=2, pad_id=0, cleaning="fold"
    )


def _prepare(text: str, cleaning: Cleaning) -> str:
    match cleaning:
        case "none":
            return text
        case "bert":
            # tokenizers' BERT normaliser does not part these Han characters, BERT itself does.
            return text if text.isascii() else _MISSED_HAN.sub(r" \1 ", text)
        case "lower":
            return clean(text).lower()
        case "fold":
            return " ".join(unicodedata.normalize("NFKC", clean(text)).lower().split())


def _clip(context: int) -> Tokenizer:
    path = _package_file("open_clip", "bpe_simple_vocab_16e6.txt.gz", extra="unicl[compat]", what="CLIP's vocabulary")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        merges = [
            (first, second) for first, second in (line.split() for line in lines.read().split("\n")[1 : MERGES + 1])
        ]
    alphabet = _byte_letters()
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges)]
    marks = ("<start_of_text>", "<end_of_text>")
    vocabulary = {entry: id for id, entry in enumerate([*entries, *marks])}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.BPEDecoder()
    inner.add_special_tokens(list(marks))
    bos_id, eos_id = (vocabulary[mark] for mark in marks)
    inner = _marked(inner, marks, ids=(bos_id, eos_id))
    return Tokenizer(inner, name="clip", context=context, eos_id=eos_id, pad_id=0, cleaning="lower")


def _chinese(context: int) -> Tokenizer:
    path = _package_file("cn_clip", "clip/vocab.txt", extra="cn-clip", what="the Chinese BERT vocabulary")
    vocabulary = {line.strip(): id for id, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"))}
    inner = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=200))
    inner.normalizer = normalizers.BertNormalizer(strip_accents=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = ("[CLS]", "[SEP]")
    bos_id, eos_id = (vocabulary[mark] for mark in marks)
    inner = _marked(inner, marks, ids=(bos_id, eos_id))
    return Tokenizer(inner, name="chinese", context=context, eos_id=eos_id, pad_id=vocabulary["[PAD]"], cleaning="bert")


def _from_place(place: Path, *, context: int) -> Tokenizer:
    file = place / "tokenizer.json" if place.is_dir() else place
    try:
        if file.is_file():
            inner = tokenizers.Tokenizer.from_file(str(file))
        else:
            from transformers import AutoTokenizer

            inner = AutoTokenizer.from_pretrained(place, local_files_only=True).backend_tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{place} holds no tokenizer that can be read ({error})") from error
    pad_id = _pad_id(inner)
    inner.no_truncation()
    inner.no_padding()
    marks = inner.encode("").ids
    eos_id = marks[-1] if marks else _first_id(inner, ("<|endoftext|>", "</s>", "<eos>", "[SEP]"), otherwise=-1)
    return Tokenizer(inner, name=place.name, context=context, eos_id=eos_id, pad_id=pad_id)


def _pad_id(inner: tokenizers.Tokenizer) -> int:
    if inner.padding:
        return int(inner.padding["pad_id"])
    return _first_id(inner, ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>"), otherwise=0)


def _first_id(inner: tokenizers.Tokenizer, tokens: Sequence[str], *, otherwise: int) -> int:
    found = (inner.token_to_id(token) for token in tokens)
    return next((id for id in found if id is not None), otherwise)


def _marked(inner: tokenizers.Tokenizer, marks: Sequence[str], *, ids: tuple[int, int]) -> tokenizers.Tokenizer:
    start, end = marks
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, ids[0]), (end, ids[1])]
    )
    return inner


def _without_added_tokens(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    # A caption that says "<eos>" must not end there.
    content = json.loads(inner.to_str())
    content["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _byte_letters() -> list[str]:
    """CLIP's 256 letters, in the order of its vocabulary: printable bytes first, the others as U+0100 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + rank) for rank in range(256 - len(printable))]


def _package_file(package: str, file: str, *, extra: str, what: str) -> Path:
    # find_spec does not run the package, whose import takes seconds.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{what} comes with the package {package}, which is missing; run: pip install '{extra}'")
    return Path(spec.origin).parent / file
