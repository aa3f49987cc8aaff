"""Recipes by name: a function of `unicl.recipes`, or of the user's own file."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unicl import recipes
from unicl.config import python_file
from unicl.errors import UserError, suggest
from unicl.recipes import Recipe


def names() -> tuple[str, ...]:
    """The recipes of this library."""
    return tuple(name for name in recipes.__all__ if inspect.isfunction(getattr(recipes, name)))


def find(name: str) -> Callable[..., Recipe]:
    """The function of a recipe's name, or of ``file.py:function``; raises `UserError` for an unknown one."""
    path, colon, function = name.rpartition(":")
    known = names()
    make: Callable[..., Recipe] | None = None
    if colon or name in known:
        make = getattr(python_file(Path(path)) if colon else recipes, function, None)
    if make is None:
        raise UserError(
            f"unknown recipe {name!r}{suggest(name, known)}; known: {', '.join(known)}, or file.py:function"
        )
    return make


def recipe(name: str, *, arguments: Mapping[str, Any]) -> Recipe:
    """The recipe of a name, or of ``file.py:function``, called with the arguments.

    Raises `UserError` for an unknown recipe or an argument that it does not take.
    """
    make = find(name)
    takes = tuple(inspect.signature(make).parameters)
    for argument in arguments:
        if argument not in takes:
            listed = f"it takes {', '.join(takes)}" if takes else "it takes none"
            raise UserError(f"recipe {name!r} has no field {argument!r}{suggest(argument, takes)}; {listed}")
    made = make(**arguments)
    if not isinstance(made, Recipe):
        raise UserError(f"{name} returned {type(made).__name__}, but a recipe is a function that returns a Recipe")
    return made
