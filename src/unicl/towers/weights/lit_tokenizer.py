"""LiT's two tokenizers from the files that it publishes: a SentencePiece model, a BERT vocabulary."""

from pathlib import Path
from types import SimpleNamespace
from typing import Final

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from unicl.data.text import Tokenizer
from unicl.errors import UserError

END: Final = "</s>"
CLASS: Final = "[CLS]"
UNKNOWN: Final = "[UNK]"
UNIGRAM: Final = 1
"""SentencePiece's number of the kind."""


def sentencepiece_tokenizer(file: Path, *, context: int) -> Tokenizer:
    """Pieces, then end marks up to ``context`` (LiT's sticky end; the last place is always one).

    Raises `UserError` if it is no unigram model with an end mark, or the packages that read it are missing.
    """
    try:
        from transformers.convert_slow_tokenizer import SpmConverter

        converter = SpmConverter(SimpleNamespace(vocab_file=str(file)))
    except ImportError as error:
        raise UserError(
            f"reading {file} needs a package that is missing; run: pip install 'unicl[sentencepiece]'"
        ) from error
    except Exception as error:  # protobuf and transformers each have their own
        raise UserError(f"{file} is no SentencePiece model: {error}") from error
    if converter.proto.trainer_spec.model_type != UNIGRAM:
        raise UserError(f"{file} is a SentencePiece model of merges (BPE); only unigram models, as LiT's are, are read")
    inner: tokenizers.Tokenizer = converter.converted()
    end = inner.token_to_id(END)
    if end is None:
        raise UserError(f"{file} has no {END}, with which LiT ends and pads every text")
    inner.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    return Tokenizer(inner, name=file.stem, context=context, eos_id=end, pad_id=end, fixed=True)


def wordpiece_tokenizer(file: Path, *, context: int) -> Tokenizer:
    """[CLS] and word pieces of lower-cased text without an end mark, padded with 0 (LiT never saw [SEP]).

    Raises `UserError` if the vocabulary has no [CLS] or [UNK].
    """
    lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    vocabulary = {line.rstrip("\r"): id for id, line in enumerate(lines)}
    if missing := [mark for mark in (CLASS, UNKNOWN) if mark not in vocabulary]:
        raise UserError(f"{file} is no vocabulary of BERT: it has no {' and no '.join(missing)}")
    inner = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{CLASS} $A", special_tokens=[(CLASS, vocabulary[CLASS])]
    )
    return Tokenizer(inner, name=file.stem, context=context, eos_id=-1, pad_id=0)
