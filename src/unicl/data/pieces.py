"""Which entries of a vocabulary begin, end or go on with a word, whatever kind of tokenizer made it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import regex
import torch
from torch import Tensor

_END: Final = "</w>"
_GOES_ON: Final = "##"
_META: Final = "\u2581"
_BYTES: Final = "\u0120"
"""What stands for a blank before a word: SentencePiece's sign, and byte-level BPE's."""

_ALONE: Final = regex.compile(r"[\p{Han}\p{P}\p{S}]")
"""Signs that are words of their own where only blanks tell words apart."""
_BYTE: Final = regex.compile(r"<0x([0-9A-F]{2})>")
_LEADS: Final = (0xE2, *range(0xE4, 0xEA), 0xF0)
"""First bytes of characters that are nearly all Han or symbols."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A vocabulary by its entries, each ``(V,)`` bool.

    ``opens``: a word begins with the entry; ``closes``: one ends with it; ``blank``: it is a blank alone, which belongs
    to the word behind it; ``marks``: it stands around a text and is no word. ``entries`` are the entries themselves.
    """

    opens: Tensor
    closes: Tensor
    blank: Tensor
    marks: Tensor
    entries: tuple[str, ...]

    @classmethod
    def of(cls, entries: Sequence[str], *, marks: Sequence[int]) -> Self:
        """By the sign that most entries carry: CLIP's ``</w>``, WordPiece's ``##``, or blanks before words.

        With blanks alone to go by, a Han character, a punctuation mark and a symbol are words of their own.
        """
        mark = torch.zeros(len(entries), dtype=torch.bool)
        mark[list(marks)] = True
        counts = {
            _END: sum(e.endswith(_END) for e in entries),
            # GPT-2's entries begin with it too, as headings of Markdown do.
            _GOES_ON: sum(e.startswith(_GOES_ON) and e[2:3].isalnum() for e in entries),
            _BYTES: sum(e.startswith(_BYTES) for e in entries),
        }
        sign = max(counts, key=lambda each: counts[each])
        if counts[sign] <= sum(e.startswith(_META) for e in entries):
            sign = _META
        sides = torch.tensor([_sides(entry, sign=sign) for entry in entries], dtype=torch.bool).view(-1, 3)
        opens, closes, blank = sides.unbind(1)
        return cls(
            opens=opens | mark, closes=closes | mark, blank=blank & ~mark, marks=mark, entries=tuple(map(str, entries))
        )

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        if self.marks.device == device:
            return self
        moved = (part.to(device) for part in (self.opens, self.closes, self.blank, self.marks))
        opens, closes, blank, marks = moved
        return replace(self, opens=opens, closes=closes, blank=blank, marks=marks)


def _sides(entry: str, *, sign: str) -> tuple[bool, bool, bool]:
    """Whether an entry opens a word, closes one, and is a blank alone."""
    match sign:
        case "</w>":
            return False, entry.endswith(_END), False
        case "##":
            return not entry.startswith(_GOES_ON), False, False
        case _:
            return _by_blanks(_raw(entry, sign=sign))


def _by_blanks(raw: bytes) -> tuple[bool, bool, bool]:
    body = raw.lstrip(b" ")
    if not body:
        return bool(raw), False, bool(raw)
    text = body.decode("utf-8", "replace")
    broken = text[0] == "\ufffd"
    alone = body[0] in _LEADS if broken else bool(_ALONE.match(text))
    ends = text[-1] != "\ufffd" and bool(_ALONE.match(text[-1]))
    return raw.startswith(b" ") or alone, ends, False


def _raw(entry: str, *, sign: str) -> bytes:
    """The bytes that an entry stands for, blanks as blanks."""
    if sign == _BYTES and all(letter in _LETTERS for letter in entry):
        return bytes(_LETTERS[letter] for letter in entry)
    if byte := _BYTE.fullmatch(entry):
        return bytes([int(byte.group(1), 16)])
    return entry.replace(_META, " ").encode("utf-8", "replace")


def _byte_letters() -> dict[str, int]:
    """Byte-level BPE's letters: printable bytes stand for themselves, the others for U+0100 and on, in their order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


_LETTERS: Final = _byte_letters()
