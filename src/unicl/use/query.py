"""What to look for: texts and pictures, added and taken away."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch
from torch import Tensor

from unicl.compare import require_texts
from unicl.errors import BadImage, UserError, suggest
from unicl.model import TwoTowers, View
from unicl.use.files import is_picture

_SIGN: Final = re.compile(r"(?:^|\s)\s*([+＋\-−－])(?=\s|$)")
_MINUS: Final = "-−－"
LEAST: Final = 1e-3
"""The length below which a sum of unit vectors has no direction left."""


@dataclass(frozen=True, slots=True)
class Term:
    """One text or picture of a query; a negative ``weight`` takes its meaning away."""

    what: str | Path
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Query:
    """A sum of texts and pictures, for example ``Query((Term(Path("photo.jpg")), Term("night", -1)))``.

    Raises `UserError` if it is empty.
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms or not all(str(term.what).strip() for term in self.terms):
            raise UserError("the query is empty; say what to look for, for example: 'a red fruit'")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``photo.jpg + red - night``: signs stand between blanks, so that ``t-shirt`` is one word.

        What names a file is a picture, the rest is text. Raises `UserError` for a query or a part that is empty, and
        for a part that ends as a picture does but is no file.
        """
        if _is_file(text.strip()):
            return cls((Term(Path(text.strip())),))
        pieces = _SIGN.split(text)
        signs, parts = pieces[1::2], [part.strip() for part in pieces[2::2]]
        if pieces[0].strip() or not signs:
            signs, parts = ["+", *signs], [pieces[0].strip(), *parts]
        if not all(parts) and any(parts):
            raise UserError(f"the query {text!r} has a sign with nothing after it; write for example: photo.jpg + red")
        return cls(tuple(_term(part, negative=sign in _MINUS) for sign, part in zip(signs, parts, strict=True)))

    def __str__(self) -> str:
        words = (f"{'-' if term.weight < 0 else '+'} {_named(term)}" for term in self.terms)
        return " ".join(words).removeprefix("+ ")

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The pictures among the terms."""
        return tuple(term.what for term in self.terms if isinstance(term.what, Path))

    @property
    def text(self) -> str | None:
        """The text, if the query is one text and nothing else."""
        first = self.terms[0]
        return first.what if len(self.terms) == 1 and isinstance(first.what, str) and first.weight > 0 else None

    def vector(self, model: TwoTowers, *, view: View = "instances") -> Tensor:
        """``(D',)`` the weighted sum of the terms' unit vectors, at unit length.

        Raises `UserError` if a picture cannot be read, or the terms cancel each other out.
        """
        total = torch.stack([term.weight * _embedded(term.what, model, view=view) for term in self.terms]).sum(0)
        length = float(total.norm())
        if not length > LEAST:
            raise UserError(f"the parts of the query '{self}' cancel each other out; nothing is left to look for")
        return total / length


def _term(part: str, *, negative: bool) -> Term:
    weight = -1.0 if negative else 1.0
    if _is_file(part):
        return Term(Path(part), weight)
    if is_picture(part):
        parent = Path(part).parent
        near = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        raise UserError(f"the query's picture {part!r} is not there{suggest(Path(part).name, near)}")
    return Term(part, weight)


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().is_file() and is_picture(text)
    except (OSError, ValueError):
        return False


def _embedded(what: str | Path, model: TwoTowers, *, view: View) -> Tensor:
    if isinstance(what, str):
        require_texts(model)
        return model.embed_text([what], view=view)[0]
    path = what.expanduser()
    if not path.is_file():
        raise UserError(f"the query's picture {str(what)!r} is not there")
    try:
        return model.embed_image([path], view=view)[0]
    except (BadImage, OSError) as error:
        raise UserError(f"the query's picture {str(what)!r} cannot be read: {error}") from error


def _named(term: Term) -> str:
    name = term.what.name if isinstance(term.what, Path) else term.what
    return name if abs(term.weight) == 1 else f"{abs(term.weight):g} {name}"
