"""Vocabularies as others publish them: CLIP's, the Chinese BERT's, and what lies in a folder."""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from unicl.data.clean import Cleaning
from unicl.errors import UserError

MERGES: Final = 49_152 - 256 - 2
"""Merges of CLIP's vocabulary that are in use, of the 262,144 in its file (CLIP, section 2.4)."""

_CLIP_WORDS: Final = r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_BERT_MARKS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ENDS: Final = ("<|endoftext|>", "</s>", "<eos>", "[SEP]")
_PADS: Final = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
_CLEANS: Final[tuple[tuple[str, Cleaning], ...]] = (
    ("canonicalize", "canonical"),
    ("lower", "lower"),
    ("whitespace", "mend"),
)
_UNIGRAM, _CONTROL, _OWN_SYMBOL, _UNKNOWN = 1, 3, 4, 2  # numbers in sentencepiece_model.proto


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A tokenizer without padding and cutting: ``inner`` adds the marks; ``eos_id`` is -1 if none stands at the end."""

    inner: tokenizers.Tokenizer
    eos_id: int
    pad_id: int
    cleaning: Cleaning = "none"


def clip() -> Vocabulary:
    """CLIP's BPE of 49,408 entries, from the installed open_clip package.

    Its ids are those of OpenAI's code, but for letters that are younger than the Unicode tables of `tokenizers`.
    Marks are spelled as in open_clip ("<end_of_text>"); OpenAI's spelling ("<|endoftext|>") is text.
    """
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
    with_marks(inner, start=marks[0], end=marks[1])
    return Vocabulary(inner=inner, eos_id=vocabulary[marks[1]], pad_id=0, cleaning="lower")


def chinese() -> Vocabulary:
    """The Chinese BERT's WordPiece of 21,128 entries, from the installed cn_clip package, with that package's ids."""
    path = _package_file("cn_clip", "clip/vocab.txt", extra="cn-clip", what="the Chinese BERT vocabulary")
    vocabulary = {line.strip(): id for id, line in enumerate(_lines(path))}
    inner = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=200))
    inner.normalizer = normalizers.BertNormalizer(strip_accents=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with_marks(inner, start="[CLS]", end="[SEP]")
    return Vocabulary(inner=inner, eos_id=vocabulary["[SEP]"], pad_id=vocabulary["[PAD]"], cleaning="bert")


def read(place: Path) -> Vocabulary:
    """A published tokenizer, with the ids that transformers gives: a folder, or one of its files.

    Known are ``tokenizer.json``, a SentencePiece model (``spiece.model``, any ``*.model``), BERT's ``vocab.txt``, and
    what AutoTokenizer turns into one of these. Raises `UserError` if nothing of this can be read.
    """
    folder = place if place.is_dir() else place.parent
    settings = _settings(folder)
    try:
        inner = _inner(place, settings)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{place} holds no tokenizer that can be read ({error})") from error
    return Vocabulary(
        inner=inner, pad_id=_pad_id(inner, settings), eos_id=_eos_id(inner), cleaning=_cleaning(folder, settings)
    )


def with_marks(inner: tokenizers.Tokenizer, *, start: str | None, end: str | None) -> None:
    """Let a tokenizer put these entries of its vocabulary before and after every text."""
    marks = [mark for mark in (start, end) if mark is not None]
    inner.post_processor = processors.TemplateProcessing(
        single=" ".join([*([start] if start else []), "$A", *([end] if end else [])]),
        special_tokens=[(mark, inner.token_to_id(mark)) for mark in marks],
    )


def without_added(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same, but a mark that is written in a text is text: a caption that says "<eos>" does not end there."""
    content = json.loads(inner.to_str())
    if content["model"]["type"] in ("BPE", "WordPiece"):
        known = content["model"]["vocab"]
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in known]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _inner(place: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    for file in _candidates(place):
        if file.suffix == ".json":
            inner = tokenizers.Tokenizer.from_file(str(file))
            return without_added(inner) if settings.get("split_special_tokens") else inner
        if file.suffix in (".model", ".spm"):
            return _sentencepiece(file)
        return _wordpiece(file, settings)
    from transformers import AutoTokenizer

    found: tokenizers.Tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True).backend_tokenizer
    return found


def _candidates(place: Path) -> Iterator[Path]:
    """The files that can be read here, the surest first."""
    if place.is_file():
        yield place
        return
    names = [place / "tokenizer.json", place / "spiece.model", *sorted(place.glob("*.model")), place / "vocab.txt"]
    yield from (path for path in names if path.is_file())


def _wordpiece(file: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """As transformers' BertTokenizer reads a vocab.txt: words of more than 100 characters are unknown."""
    vocabulary = {line: id for id, line in enumerate(_lines(file))}
    missing = [mark for mark in _BERT_MARKS[:4] if mark not in vocabulary]
    if missing:
        raise UserError(f"{file} is no BERT vocabulary: it has no {missing[0]}")
    inner = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    inner.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##")
    if not settings.get("split_special_tokens"):
        inner.add_special_tokens([mark for mark in _BERT_MARKS if mark in vocabulary])
    with_marks(inner, start="[CLS]", end="[SEP]")
    return inner


def _sentencepiece(file: Path) -> tokenizers.Tokenizer:
    """A SentencePiece model, unigram or BPE, with its end mark behind every text (T5, SigLIP, LiT)."""
    try:
        from sentencepiece import sentencepiece_model_pb2 as protobuf
    except ImportError as error:
        raise UserError(f"{file} is a SentencePiece model; pip install 'unicl[sentencepiece]'") from error
    proto: Any = protobuf.ModelProto()
    proto.ParseFromString(file.read_bytes())
    train, rules = proto.trainer_spec, proto.normalizer_spec
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if train.model_type == _UNIGRAM:
        model: Any = models.Unigram(pieces, unk_id=train.unk_id, byte_fallback=train.byte_fallback)
    else:
        model = _piece_bpe([piece for piece, _ in pieces], unknown=train.unk_piece, bytes=train.byte_fallback)
    inner = tokenizers.Tokenizer(model)
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        # `tokenizers` looks rules up for one letter at a time, SentencePiece for the longest run: "o" and two marks.
        steps = [normalizers.NFC(), normalizers.Precompiled(rules.precompiled_charsmap), normalizers.NFC()]
    if rules.remove_extra_whitespaces:
        parts = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Metaspace(prepend_scheme="always")]
        inner.pre_tokenizer = pre_tokenizers.Sequence(parts)
    else:
        steps += [normalizers.Prepend("▁")] if rules.add_dummy_prefix else []
        steps += [normalizers.Replace(" ", "▁")]
    inner.normalizer = normalizers.Sequence(steps)
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens([piece.piece for piece in proto.pieces if piece.type in (_CONTROL, _UNKNOWN)])
    inner.add_tokens([piece.piece for piece in proto.pieces if piece.type == _OWN_SYMBOL])
    if train.eos_id >= 0:
        with_marks(inner, start=None, end=train.eos_piece)
    return inner


def _piece_bpe(pieces: Sequence[str], *, unknown: str, bytes: bool) -> models.BPE:
    """SentencePiece keeps no merges: any two pieces that make a third are one, the first made first."""
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    return models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes)


def _settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= _json(folder / name)
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _cleaning(folder: Path, settings: Mapping[str, Any]) -> Cleaning:
    """What the project that wrote the folder does to texts in Python, before its tokenizer."""
    if (folder / "open_clip_config.json").is_file():
        text = _json(folder / "open_clip_config.json").get("model_cfg", {}).get("text_cfg", {})
        usual = "whitespace" if text.get("hf_tokenizer_name") else "lower"
        return dict(_CLEANS).get(text.get("tokenizer_kwargs", {}).get("clean", usual), "none")
    return "bare" if settings.get("tokenizer_class") == "SiglipTokenizer" else "none"


def _pad_id(inner: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> int:
    if inner.padding:
        return int(inner.padding["pad_id"])
    named = settings.get("pad_token") or ("</s>" if settings.get("tokenizer_class") == "SiglipTokenizer" else None)
    mark = named.get("content") if isinstance(named, Mapping) else named
    return _first_id(inner, (*([mark] if mark else []), *_PADS), otherwise=0)


def _eos_id(inner: tokenizers.Tokenizer) -> int:
    """The mark at the end of every text; -1 if there is none, or only one at the start."""
    inner.no_truncation()
    inner.no_padding()
    marks, some = inner.encode("").ids, inner.encode("a").ids
    if not marks:
        return _first_id(inner, _ENDS, otherwise=-1)
    return marks[-1] if some and some[-1] == marks[-1] else -1


def _first_id(inner: tokenizers.Tokenizer, tokens: Sequence[str], *, otherwise: int) -> int:
    found = (inner.token_to_id(token) for token in tokens)
    return next((id for id in found if id is not None), otherwise)


def _lines(path: Path) -> list[str]:
    # Not splitlines: vocabularies hold signs that it takes for the end of a line.
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


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
