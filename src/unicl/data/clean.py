"""What happens to a text before its tokens: mended, lowered, parted, as the maker of its vocabulary did."""

import html
import re
import string
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Final, Literal

import ftfy

Cleaning = Literal["none", "bert", "mend", "lower", "fold", "canonical", "bare"]
"""Nothing; BERT's marks and blanks as in its own code; `clean`; that in lower case (CLIP); that and NFKC (ours);
lower case without punctuation, mended (big_vision, open_clip's SigLIP) or not (transformers' SigLIP)."""

_PLAIN: Final = re.compile(r"[ -%'-~]*")  # printable ASCII without "&": nothing that ftfy or html would change
_LONE: Final = re.compile("[\ud800-\udfff]")
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_UNKNOWN: Final = "\ua000"  # a letter that no vocabulary of BERT's has, and that every table of Unicode knows
_HAN: Final = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
_TAKEN_WRONGLY: Final = (0x166D, 0x1734)


def clean(text: str) -> str:
    """Broken encodings mended, HTML entities read, white space joined (CLIP's cleaning, without the lower case)."""
    if not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        text = _whole(text)
    return " ".join(text.split())


def prepare(text: str, cleaning: Cleaning) -> str:
    """A text as its vocabulary wants it; halves of surrogate pairs become U+FFFD, or for BERT an unknown letter."""
    match cleaning:
        case "none":
            return _whole(text)
        case "bert":
            # Lower case before the marks are parted: a Greek sigma looks at what follows it.
            return text if text.isascii() else text.translate(_BERT_LETTERS).lower().translate(_BERT_MARKS)
        case "mend":
            return clean(text)
        case "lower":
            return clean(text).lower()
        case "fold":
            return " ".join(unicodedata.normalize("NFKC", clean(text)).lower().split())
        case "canonical":
            return _unpunctuated(clean(text).replace("_", " "))
        case "bare":
            return _unpunctuated(_whole(text))


def _unpunctuated(text: str) -> str:
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def _whole(text: str) -> str:
    if not _LONE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class _Table:
    """A table for `str.translate`, made as letters come."""

    def __init__(self, form: Callable[[int], str]) -> None:
        self._form: Final = form

    def __getitem__(self, code: int) -> str:
        return self._form(code)


@cache
def _bert_letter(code: int) -> str:
    """What BERT's own code makes of a character before it looks for words.

    The `tokenizers` library does the same by older tables of Unicode; here, younger signs are what Python says.
    """
    letter = chr(code)
    kind = unicodedata.category(letter)
    if letter in "\t\n\r" or kind == "Zs":
        return " "
    if code in (0, 0xFFFD) or kind in ("Cc", "Cf", "Mn"):
        return ""
    if kind in ("Co", "Cs") or code in _TAKEN_WRONGLY:
        return _UNKNOWN
    return f" {letter} " if any(first <= code <= last for first, last in _HAN) else letter


@cache
def _bert_mark(code: int) -> str:
    letter = chr(code)
    return f" {letter} " if unicodedata.category(letter)[0] == "P" else letter


_BERT_LETTERS: Final = _Table(_bert_letter)
_BERT_MARKS: Final = _Table(_bert_mark)
