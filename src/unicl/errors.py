"""The one error a user may see: what came, what was wanted, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in the user's data, flags or files; the command prints its text and exits with ``code``.

    One that is ``silent`` has been said by another process already.
    """

    def __init__(self, message: str, *, code: int = 2, silent: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.silent = silent


class BadImage(ValueError):
    """An image that cannot be used; its text is the reason that the quarantine lists."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` or ``""``, to stand behind an unknown word in an error."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
