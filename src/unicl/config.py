"""Settings as text: fields by name from the command line, the whole configuration of a run to YAML and back."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from unicl.errors import UserError, suggest

T = TypeVar("T")


def to_plain(settings: Any) -> dict[str, Any]:
    """A settings object as dicts, lists and scalars."""
    plain: dict[str, Any] = TypeAdapter(type(settings)).dump_python(settings, mode="json")
    return plain


def from_plain(kind: type[T], content: Any, *, where: str) -> T:
    """Settings from plain content; raises `UserError` that names ``where`` and each field that is wrong."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        problems = "; ".join(f"{_dotted(e['loc'])}: {e['msg'].lower()} (got {e['input']!r})" for e in error.errors())
        raise UserError(f"{where}: {problems}") from error


def assign(settings: T, assignments: Sequence[str]) -> T:
    """A copy of settings with ``field=value`` or ``part.field=value`` applied; values are read as YAML.

    Raises `UserError` for an unknown field, with the nearest known one, or a value of the wrong type.
    """
    plain = to_plain(settings)
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment!r} is not of the form field=value, such as optim.lr=1e-4")
        found = _value(value)
        if isinstance(found, float) and isnan(found):
            raise UserError(f"--set {assignment}: NaN is no number that anything can be set to")
        _put(plain, path.strip().split("."), found, settings=settings, assignment=assignment)
    return from_plain(type(settings), plain, where="the recipe")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, at: str = "") -> dict[str, tuple[Any, Any]]:
    """Every leaf that two plain configurations do not share, by its dotted name."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, at=f"{at}{name}.")
        elif before != after:
            found[at + name] = (before, after)
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file; raises `UserError` if it is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a mapping of fields to values")
    return content


def to_yaml(content: Mapping[str, Any]) -> str:
    """Plain content as YAML, in the order of its fields."""
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


def python_file(path: Path) -> Any:
    """The module of a user's own Python file, run once; raises `UserError` if there is none."""
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"no Python file {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _put(plain: Any, path: list[str], value: Any, *, settings: Any, assignment: str) -> None:
    for depth, name in enumerate(path):
        known = [str(k) for k in range(len(plain))] if isinstance(plain, list) else list(plain or ())
        if name not in known:
            inside = f" in {'.'.join(path[:depth])!r}" if depth else f" in {type(settings).__name__.lower()}"
            raise UserError(
                f"--set {assignment}: no field {name!r}{inside}{suggest(name, known)}; fields: {', '.join(known)}"
            )
        place: Any = int(name) if isinstance(plain, list) else name
        if depth == len(path) - 1:
            plain[place] = value
        plain = plain[place]


def _value(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 does not know 1e-4 for a number
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _dotted(place: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in place)
