"""Tokens back to a text that people read."""

import json
from collections.abc import Sequence
from typing import Any, Final

import regex
from tokenizers import decoders

from unicl.data.text import Tokenizer

_AROUND_MARKS: Final = regex.compile(r"\s+(?=[,.;:!?%)\]}'’]|$)|(?<=[(\[{]|^)\s+")
_AMONG_HAN: Final = regex.compile(r"(?<=[\p{Han}，。！？；：、])\s+(?=[\p{Han}，。！？；：、])")


def spelled(tokenizer: Tokenizer, texts: Sequence[Sequence[int]]) -> list[str]:
    """The texts that these tokens, without marks, stand for, as far as the tokenizer keeps them.

    Blanks around punctuation and between Chinese characters, which some tokenizers add, are left out.
    """
    decoder = _decoder(tokenizer)
    read = tokenizer.inner.id_to_token
    said = (decoder.decode([entry for token in tokens if (entry := read(token)) is not None]) for tokens in texts)
    return [str(_AMONG_HAN.sub("", _AROUND_MARKS.sub("", each))) for each in said]


def _decoder(tokenizer: Tokenizer) -> Any:
    """How entries become a text: as the tokenizer says, or as its kind of model does where it does not."""
    model = json.loads(tokenizer.inner.to_str())["model"]
    if model.get("end_of_word_suffix"):  # CLIP: its entries are bytes, which its own decoder leaves as they are
        return decoders.Sequence([decoders.ByteLevel(), decoders.Replace(model["end_of_word_suffix"], " ")])
    if tokenizer.inner.decoder is not None:
        return tokenizer.inner.decoder
    if model["type"] == "WordPiece":
        return decoders.WordPiece(prefix=model["continuing_subword_prefix"])
    return decoders.Sequence([decoders.Metaspace(prepend_scheme="always"), decoders.ByteFallback(), decoders.Fuse()])
