"""Which entries of a vocabulary begin, end or go on with a word, whatever kind of tokenizer made it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import regex
import torch
from torch import Tensor

_BLANKS: Final = ("\u2581", "\u0120")
"""What stands for a blank before a word: SentencePiece's and byte-level BPE's."""
_END: Final = "</w>"
_GOES_ON: Final = "##"
_ALONE: Final = regex.compile(r"^[\p{Han}\p{P}\p{S}]")
"""Signs that are words of their own where only blanks tell words apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A vocabulary by its entries, each ``(V,)`` bool.

    ``opens``: a word begins with the entry; ``closes``: one ends with it; ``marks``: it stands around a text and is no
    word. ``entries`` are the entries themselves.
    """

    opens: Tensor
    closes: Tensor
    marks: Tensor
    entries: tuple[str, ...]

    @classmethod
    def of(cls, entries: Sequence[str], *, marks: Sequence[int]) -> Self:
        """By the entries' own signs: WordPiece's ``##``, CLIP's ``</w>``, blanks before words."""
        mark = torch.zeros(len(entries), dtype=torch.bool)
        mark[list(marks)] = True
        if any(e.endswith(_END) for e in entries):
            closes = [e.endswith(_END) for e in entries]
            opens = [False] * len(entries)
        elif any(e.startswith(_GOES_ON) for e in entries):
            opens, closes = [not e.startswith(_GOES_ON) for e in entries], [False] * len(entries)
        else:
            opens, closes = [e.startswith(_BLANKS) or bool(_ALONE.match(e)) for e in entries], [False] * len(entries)
        return cls(
            opens=torch.tensor(opens) | mark, closes=torch.tensor(closes) | mark, marks=mark, entries=tuple(entries)
        )

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return replace(self, opens=self.opens.to(device), closes=self.closes.to(device), marks=self.marks.to(device))
