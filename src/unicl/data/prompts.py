"""Sentences around class names, and the names of classes, as data."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np
import regex

from unicl.data.components import CLASS_SETS, CLASSES, class_prompts, class_set, filip_sets, product_of
from unicl.data.elevater import OF_CN_CLIP, own_names, own_prompts
from unicl.errors import UserError, suggest

Prompts = Sequence[str] | Mapping[str, Sequence[str]]
"""What is said of classes: sentences with ``{}`` for all of them, or sentences of each class by its name."""
OWN: Final = ("en", "en-short", "zh", "zh-short")
READ: Final = ("clip80", "unicl81", "wukong80")
"""Sets that are read from installed packages.

Of open_clip, CLIP's 80 for ImageNet, and UniCL's, which add ``{}.``; of cn_clip, Wukong's 80 Chinese ones, of which two
stand there twice and so weigh twice.
"""
BY_CLASS: Final = CLASS_SETS
"""Sets that have sentences of their own for each class that they know: findings of chest X-rays."""

_DRAWN: Final = regex.compile(r"(?P<name>.+?):(?P<most>\d+)(?::(?P<seed>\d+))?")
_HAN: Final = regex.compile(r"\p{Han}")
_KANA: Final = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_MARK: Final = "\N{OBJECT REPLACEMENT CHARACTER}"


def templates(name: str) -> tuple[str, ...]:
    """The sentences of a set, each with ``{}`` where a class name goes.

    Raises `UserError` as `prompt_set`, and for a set that is `BY_CLASS`.
    """
    found = prompt_set(name)
    if isinstance(found, Mapping):
        raise UserError(f"the prompts {name!r} belong to classes of their own and fit no others; give {', '.join(OWN)}")
    return tuple(found)


def prompt_set(name: str) -> Prompts:
    """The sentences of a set by its name, for all classes or by class.

    ``name`` is one of `set_names`, or a file: .txt with a sentence a line; .json with a list of them, with lists of
    components (see `unicl.data.components.product_of`), or with prompts of classes, as in
    ``{"classes": {"cat": ["a cat"]}}``. ``name:5`` are five of them, or five of each class, drawn by the seed 0, and
    ``name:5:1`` those of the seed 1. Raises `UserError` if there is no such set, a file is broken, or a package that
    holds it is missing.
    """
    drawn = None if Path(name).expanduser().is_file() else _DRAWN.fullmatch(name)
    if drawn is None:
        return _whole_set(name)
    most, seed = int(drawn["most"]), int(drawn["seed"] or 0)
    if most < 1:
        raise UserError(f"the prompts {name!r} ask for {most} sentences; ask for at least 1, as in {drawn['name']}:5")
    rng, found = np.random.default_rng(seed), _whole_set(drawn["name"])
    if isinstance(found, Mapping):
        return {label: _drawn(several, most, rng) for label, several in found.items()}
    return _drawn(found, most, rng)


def set_names() -> tuple[str, ...]:
    """The names of all sets that `prompt_set` knows."""
    return (*OWN, *READ, *filip_sets(), *BY_CLASS, *OF_CN_CLIP, *own_prompts())


def sentences_for(prompts: Prompts, name: str) -> Sequence[str]:
    """What is said of a class, to be given its name by `fill`; raises `UserError` if it has no prompts of its own."""
    if not isinstance(prompts, Mapping):
        return prompts
    found = prompts.get(name) or {_plain(label): each for label, each in prompts.items()}.get(_plain(name))
    if not found:
        near = suggest(name, prompts)
        raise UserError(f"the prompts have none for the class {name!r}{near}; they know {', '.join(prompts)}")
    return found


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
    from 0 is its label) or ``label<TAB>name`` on every line. Where there is no such file, ``zh-cifar-10`` and the
    others of `unicl.data.elevater.own_names` are the names that come with the library.
    Raises `UserError` if the file cannot be read, or a name is empty or a label stands twice.
    """
    if not path.is_file() and (own := own_names().get(str(path))) is not None:
        return dict(own)
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


def _whole_set(name: str) -> Prompts:
    if name in OWN:
        return tuple((files("unicl.data") / "templates" / f"{name}.txt").read_text(encoding="utf-8").splitlines())
    if name in READ:
        return (
            _of_cn_clip("imagenet_zeroshot_templates", "openai_imagenet_template")
            if name == "wukong80"
            else _of_clip() + (("{}.",) if name == "unicl81" else ())
        )
    if name in BY_CLASS:
        return class_set(name)
    if name in OF_CN_CLIP:
        return _of_cn_clip("cvinw_zeroshot_templates", f"{OF_CN_CLIP[name]}_templates")
    shipped = filip_sets() | own_prompts()
    if name in shipped:
        return shipped[name]
    path = Path(name).expanduser()
    if not path.is_file():
        known = set_names()
        raise UserError(f"no prompts {name!r}{suggest(name, known)}; give one of {', '.join(known)}, or a file")
    return _of_file(path)


def _drawn(sentences: Sequence[str], most: int, rng: np.random.Generator) -> tuple[str, ...]:
    if most >= len(sentences):
        return tuple(sentences)
    return tuple(sentences[place] for place in sorted(rng.choice(len(sentences), most, replace=False).tolist()))


def _plain(name: str) -> str:
    return clean_name(name).casefold()


def _of_clip() -> tuple[str, ...]:
    try:
        from open_clip import OPENAI_IMAGENET_TEMPLATES
    except ImportError as error:
        raise UserError(
            "the templates clip80 and unicl81 come with open_clip, which is missing; run: pip install 'unicl[compat]'"
        ) from error
    return _marked(OPENAI_IMAGENET_TEMPLATES)


def _of_cn_clip(module: str, name: str) -> tuple[str, ...]:
    try:
        found = import_module(f"cn_clip.eval.{module}")
    except ImportError as error:
        raise UserError(
            "the templates wukong80 and elevater come with cn_clip, which is missing; run: pip install cn-clip"
        ) from error
    return _marked(getattr(found, name))


def _marked(sentences: Sequence[Callable[[str], str]]) -> tuple[str, ...]:
    return tuple(sentence(_MARK).replace(_MARK, "{}") for sentence in sentences)


def _of_file(path: Path) -> Prompts:
    if path.suffix != ".json":
        return _checked([line.strip() for line in _text(path).splitlines() if line.strip()], path)
    content = _json(path)
    if isinstance(content, list):
        return _checked(content, path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a JSON {type(content).__name__}, but a list of templates or an object was wanted"
        )
    if CLASSES not in content:
        return product_of(content, where=str(path))
    if len(content) > 1:
        raise UserError(f"{path}: beside {CLASSES!r} stands {min(content.keys() - {CLASSES})!r}; leave one of them out")
    return class_prompts(content[CLASSES], where=str(path))


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
