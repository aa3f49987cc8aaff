"""Where the sentences of a text begin and end."""

import re
from collections.abc import Iterator
from typing import Final

ITEM: Final = re.compile(r"(?:\d{1,2}[.)]|[-*•])\s+")
"""What begins an item of a list."""
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
