"""Captions against what people wrote of the same pictures: BLEU and CIDEr."""

from collections.abc import Sequence
from typing import Any, Final

import regex

from unicl.data.clean import prepare
from unicl.errors import UserError

_WORDS: Final = regex.compile(r"\p{Han}|[\p{L}\p{M}\p{N}--\p{Han}]+(?:['’][\p{L}--\p{Han}]+)*", regex.VERSION1)
LONGEST: Final = 4
"""Words of the longest run that BLEU compares."""


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters and digits with their apostrophes, each Chinese character.

    Punctuation is left out, as in COCO's own numbers. Their words are those of the Penn Treebank's tokenizer, in Java,
    which parts "it 's" and "ca n't", and keeps "over-the-top", "3:30" and "1,000" whole.
    """
    return list(_WORDS.findall(prepare(text, "fold")))


def wording_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to BLEU-4 (0 to 1) of all captions together, and CIDEr (0 to 10), by pycocoevalcap's scorers.

    CIDEr is CIDEr-D, as in COCO's own code: a word counts no more often than the reference has it, and another length
    is punished. It weighs words by how few pictures have them, so that of one picture alone it is 0. Words are those of
    `words_of`, so that numbers differ a little from COCO's. ``references`` are at least one text for each caption.
    Raises `UserError` without captions, for one without references, and if the package is missing.
    """
    if not captions or not all(references):
        raise UserError("BLEU and CIDEr compare at least one caption, and each with at least one text of its picture")
    bleu_of, cider_of = require_scorers()
    ours = {k: [_split(caption)] for k, caption in enumerate(captions)}
    theirs = {k: [_split(text) for text in several] for k, several in enumerate(references)}
    bleu, _ = bleu_of(LONGEST).compute_score(theirs, ours, verbose=0)
    cider, _ = cider_of().compute_score(theirs, ours)
    return {f"BLEU-{k + 1}": float(value) for k, value in enumerate(bleu)} | {"CIDEr": float(cider)}


def require_scorers() -> tuple[Any, Any]:
    """pycocoevalcap's classes for BLEU and CIDEr; raises `UserError` if the package is missing."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise UserError("BLEU and CIDEr are those of pycocoevalcap: pip install 'unicl[captions]'") from error
    return Bleu, Cider


def _split(text: str) -> str:
    return " ".join(words_of(text))
