"""A similarity by its name."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from torch import Tensor

from unicl.config import python_file
from unicl.errors import UserError, suggest
from unicl.similarity.attended import attended
from unicl.similarity.tokenwise import tokenwise
from unicl.similarity.whole import cosine
from unicl.space import Embedding

Similarity = Callable[[Embedding, Embedding], tuple[Tensor, Tensor]]
"""Some images and some texts to two tables of scores, images by texts: what the images' softmax sees, and the texts'.

It is all that a new similarity has to be: the objective calls it a tile at a time and exchanges rows between processes.
"""
Option = bool | int | float | str
OF_PARTS: Final = ("tokenwise", "attended")
"""The similarities here that read parts."""


def find_similarity(name: str, *, options: Mapping[str, Option] | None = None) -> Similarity:
    """A similarity by its name, or by ``file.py:function``, with its options.

    Raises `UserError` for an unknown name or an option that it does not take.
    """
    path, colon, function = name.rpartition(":")
    known: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "cosine": cosine,
        "tokenwise": tokenwise,
        "attended": attended,
    }
    found = getattr(python_file(Path(path)), function, None) if colon else known.get(name)
    if found is None:
        near = suggest(name, known)
        raise UserError(f"unknown similarity {name!r}{near}; give {', '.join(known)} or file.py:function")
    takes = tuple(inspect.signature(found).parameters)[2:]
    for option in options or {}:
        if option not in takes:
            listed = f"it takes {', '.join(takes)}" if takes else "it takes none"
            raise UserError(f"similarity {name!r} has no option {option!r}{suggest(option, takes)}; {listed}")
    return partial(found, **options) if options else found
