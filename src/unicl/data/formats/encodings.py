"""Bytes of text files to strings, with errors that say where the wrong byte is and which encoding it may be."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO

from unicl.errors import UserError

DEFAULT = "utf-8-sig"
MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)

GUESSES = (
    ("gb18030", 0xA1, 0xD7),
    ("big5", 0xA1, 0xC6),
    ("shift_jis", 0x81, 0x98),
    ("euc_kr", 0xA1, 0xC8),
    ("cp1252", 0, 0),
    ("latin-1", 0, 0),
)
"""Encodings to propose, with the lead bytes of their everyday characters (0: an alphabet of single bytes)."""


def decode_text(content: bytes, *, encoding: str, where: str) -> str:
    """A whole small file as text; ``encoding`` "" is UTF-8 or what the byte order mark says.

    Raises `UserError` that names the line, the byte and the encodings that would fit.
    """
    name = encoding or encoding_of(content)
    try:
        return content.decode(name)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _undecodable(content, error.start, line=line, encoding=name, where=where) from error


@contextmanager
def open_text(path: Path, *, encoding: str, where: str) -> Iterator[TextIO]:
    """A text file opened for reading, line ends kept; a wrong byte met inside the block is a `UserError`."""
    try:
        with path.open("rb") as start:
            name = encoding or encoding_of(start.read(4))
        with path.open(encoding=name, newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise _wrong_byte(path, encoding=name, where=where) from error
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from error


def encoding_of(start: bytes) -> str:
    """The encoding that a byte order mark names, else UTF-8."""
    return next((name for mark, name in MARKS if start.startswith(mark)), DEFAULT)


def _wrong_byte(path: Path, *, encoding: str, where: str) -> UserError:
    # Decoders report positions within their own buffer; reading again by lines gives the place in the file.
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                content = line + _following(file)
                return _undecodable(content, error.start, line=number, encoding=encoding, where=where, before=position)
            position += len(line)
    return UserError(f"{where} is not {_plain(encoding)}; give its encoding, for example ?encoding=gb18030")


def _following(file: BinaryIO) -> bytes:
    return b"".join(islice(file, 200))


def _undecodable(content: bytes, start: int, *, line: int, encoding: str, where: str, before: int = 0) -> UserError:
    first = content.rfind(b"\n", 0, start) + 1
    guesses = _likely(content[first : first + 65536])
    shown = " or ".join(f"encoding={name} ({text!r})" for name, text in guesses[:2])
    advice = f"it reads as {shown}: add ?encoding=NAME" if guesses else "save it as UTF-8"
    byte = f"0x{content[start]:02x}"
    return UserError(
        f"{where} is not {_plain(encoding)} text: byte {byte} at position {before + start:,} (line {line:,}); {advice}"
    )


def _likely(content: bytes) -> list[tuple[str, str]]:
    """Encodings that fit the content and make usual characters of it, the best first, each with a line to look at."""
    scored = []
    for name, low, high in GUESSES:
        try:
            text = content.decode(name, errors="strict")
        except UnicodeDecodeError:
            text = content[: content.rfind(b"\n") + 1].decode(name, errors="ignore") if name == "latin-1" else ""
        if (share := _usual(text, encoding=name, low=low, high=high)) > 0.5:
            scored.append((share, name, text.splitlines()[0].strip()[:40]))
    ordered = sorted(scored, key=lambda entry: -entry[0])
    return [(name, text) for share, name, text in ordered if share > 0.8 * ordered[0][0]]


def _usual(text: str, *, encoding: str, low: int, high: int) -> float:
    marks = [letter for letter in text if ord(letter) > 127]
    if not marks:
        return 0.0
    if not low:
        return (
            0.9 * sum(unicodedata.category(letter) in ("Ll", "Lu", "Pi", "Pf", "Pd") for letter in marks) / len(marks)
        )
    codes = [letter.encode(encoding) for letter in marks]
    return sum(len(code) == 2 and low <= code[0] <= high and code[1] >= 0x40 for code in codes) / len(marks)


def _plain(encoding: str) -> str:
    return "UTF-8" if encoding == DEFAULT else encoding
