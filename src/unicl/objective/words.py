"""What a term that predicts words is told of the tokens: how many there are, and which of them are marks."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The tokens of a model: ``size`` entries, and the numbers of the marks among them.

    ``start`` and ``end`` stand around every text (-1: there is none), ``pad`` behind it, ``mask`` in place of a hidden
    token. A tokenizer without such a mark gives it the number ``size - 1``, which no text has. ``context`` is the
    longest text in tokens.
    """

    size: int
    pad: int
    start: int
    end: int
    mask: int
    context: int = 77

    @property
    def marks(self) -> tuple[int, ...]:
        """The entries that are no words."""
        return tuple(sorted({self.pad, self.start, self.end, self.mask} - {-1}))
