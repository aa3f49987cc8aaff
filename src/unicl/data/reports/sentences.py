"""Where the sentences of a text begin and end, and how long they are."""

import re
from collections.abc import Iterator
from typing import Final

import regex

ITEM: Final = re.compile(r"(?:\d{1,2}[.)]|[-*•])\s+")
"""What begins an item of a list."""
UNSPACED: Final = re.compile(r"[\u3005\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
"""A sign of a script that puts no spaces between words: Chinese, Japanese."""
_WORD: Final = regex.compile(r"\p{Han}|[^\W\p{Han}]+")
_END: Final = re.compile(r"[.!?][\"')\]]*\s+|[。！？；]+[”’」』）]*\s*")
_NEVER: Final = re.compile(r"(?:^|\W)(?:dr|mr|mrs|ms|vs|approx|e\.g|i\.e|cf|[A-Z])\.$", re.IGNORECASE)
_SOMETIMES: Final = re.compile(r"(?:^|\W)(?:cm|mm|etc|a\.m|p\.m)\.$", re.IGNORECASE)


def places(text: str) -> tuple[tuple[int, int], ...]:
    """Where the sentences of a text begin and end: no line holds part of two; numbers of a list are left out."""
    found = []
    for line in re.finditer(r"\S[^\n]*", text):
        start = line.start()
        for end in (*_ends(line.group(), offset=start), line.end()):
            item = ITEM.match(text, start, end)
            first = item.end() if item else start
            if re.search(r"[^\W\d_]", text[first:end]):
                found.append((first, first + len(text[first:end].rstrip())))
            start = end
    return tuple(found)


def count_words(text: str) -> int:
    """How many runs of letters and digits a text has; a Chinese character is a word."""
    return len(_WORD.findall(text))


def _ends(line: str, *, offset: int) -> Iterator[int]:
    """Where one sentence of a line ends and another begins; the number of an item and short forms end none."""
    start = 0
    for match in _END.finditer(line):
        before, after = line[start : match.start() + 1], line[match.end() : match.end() + 1]
        if re.fullmatch(r"\d{1,2}\.", before) or _NEVER.search(before):
            continue
        if after.islower() and _SOMETIMES.search(before):
            continue
        start = match.end()
        yield offset + start
