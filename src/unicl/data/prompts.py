"""Sentences around class names, and the names of classes, as data."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

import regex

from unicl.errors import UserError, suggest

OWN: Final = ("en", "en-short", "zh", "zh-short")
READ: Final = ("clip80", "unicl81")
"""Sets that are read from the installed open_clip package: CLIP's 80 for ImageNet, and UniCL's, which add ``{}.``."""

_HAN: Final = regex.compile(r"\p{Han}")
_KANA: Final = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_MARK: Final = "\N{OBJECT REPLACEMENT CHARACTER}"


def templates(name: str) -> tuple[str, ...]:
    """The sentences of a set, each with ``{}`` where a class name goes.

    ``name`` is one of `OWN` or `READ`, or a file: .txt with a sentence a line, .json with a list of them.
    Raises `UserError` if there is no such set, a sentence has no ``{}``, or open_clip is needed and missing.
    """
    if name in OWN:
        text = (files("unicl.data") / "templates" / f"{name}.txt").read_text(encoding="utf-8")
        return tuple(text.splitlines())
    if name in READ:
        return _of_clip() + (("{}.",) if name == "unicl81" else ())
    path = Path(name).expanduser()
    if not path.is_file():
        known = (*OWN, *READ)
        raise UserError(f"no templates {name!r}{suggest(name, known)}; give one of {', '.join(known)}, or a file")
    return _checked(_lines(path), path)


def fill(template: str, name: str) -> str:
    """The template with a class name in it; commas of the name go, ``+`` and ``_`` become blanks (UniCL's code)."""
    return template.replace("{}", clean_name(name))


def clean_name(name: str) -> str:
    """A class name as text: without commas, with blanks for ``+`` and ``_``."""
    return " ".join(name.replace(",", "").replace("+", " ").replace("_", " ").split())


def language_of(names: Sequence[str]) -> str:
    """ "zh" if more than half of the names are Chinese, else "en": the template set that fits them."""
    chinese = sum(bool(_HAN.search(name)) and not _KANA.search(name) for name in names)
    return "zh" if 2 * chinese > len(names) else "en"


def read_names(path: Path) -> dict[str, str]:
    """Label to class name from a file.

    JSON: a list (a name's place is its label) or an object (label to name). Text: a name a line (the line's number
    from 0 is its label) or ``label<TAB>name`` on every line.
    Raises `UserError` if the file cannot be read, or a name is empty or a label stands twice.
    """
    if path.suffix == ".json":
        content = _json(path)
        pairs = [
            (str(label), name)
            for label, name in (content.items() if isinstance(content, dict) else _numbered(content, path))
        ]
    else:
        pairs = _tabbed(_text(path).splitlines(), path)
    names: dict[str, str] = {}
    for label, name in pairs:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{path}: the class name of label {label!r} is {name!r}, but a text was wanted")
        if label in names:
            raise UserError(f"{path}: label {label!r} stands there twice ({names[label]!r} and {name!r}); keep one")
        names[label] = name.strip()
    if not names:
        raise UserError(f"{path} holds no class names; write one a line, or label<TAB>name")
    return names


def _of_clip() -> tuple[str, ...]:
    try:
        from open_clip import OPENAI_IMAGENET_TEMPLATES
    except ImportError as error:
        raise UserError(
            "the templates clip80 and unicl81 come with open_clip, which is missing; run: pip install 'unicl[compat]'"
        ) from error
    return tuple(template(_MARK).replace(_MARK, "{}") for template in OPENAI_IMAGENET_TEMPLATES)


def _lines(path: Path) -> list[object]:
    if path.suffix == ".json":
        content = _json(path)
        if not isinstance(content, list):
            raise UserError(f"{path} holds a JSON {type(content).__name__}, but a list of templates was wanted")
        return content
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _checked(lines: Sequence[object], path: Path) -> tuple[str, ...]:
    if not lines:
        raise UserError(f"{path} holds no templates; write one a line, with {{}} where the class name goes")
    for line in lines:
        if not isinstance(line, str) or "{}" not in line:
            raise UserError(f"{path}: the template {line!r} has no {{}}; put {{}} where the class name goes")
    return tuple(str(line) for line in lines)


def _numbered(content: object, path: Path) -> list[tuple[str, object]]:
    if not isinstance(content, list):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, but a list or an object of names was wanted")
    return [(str(place), name) for place, name in enumerate(content)]


def _tabbed(lines: Sequence[str], path: Path) -> list[tuple[str, object]]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    with_labels = ["\t" in line for line in lines]
    if any(with_labels) and not all(with_labels):
        line = with_labels.index(False) + 1
        raise UserError(f"{path}: line {line} has no tab, others do; write label<TAB>name on every line or on none")
    if any(with_labels):
        return [(label.strip(), name) for label, _, name in (line.partition("\t") for line in lines)]
    return [(str(place), name) for place, name in enumerate(lines)]


def _json(path: Path) -> object:
    try:
        content: object = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
