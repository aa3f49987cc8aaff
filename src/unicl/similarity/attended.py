"""GLoRIA's local similarity: each word looks at the places of a picture, and is compared with what it sees."""

from typing import Literal

from torch import Tensor

from unicl.space import Embedding

Over = Literal["sum", "max", "mean"]


def attended(
    images: Embedding,
    texts: Embedding,
    *,
    sharpness: float = 4.0,
    gain: float = 5.0,
    over: Over = "sum",
    words_first: bool = True,
    skip: int = 0,
) -> tuple[Tensor, Tensor]:
    """``(I, T)``: how well a text's words agree with the places that they look at; one table for both ways.

    GLoRIA, equations 2 to 5, as released: raw products of places and words, a softmax over words at each place
    (``words_first``; the paper has none), then, times ``sharpness`` (temp1), a softmax over places for each word. A
    word's cosine with the mean of the places that it looks at counts times ``gain`` (temp2); ``over`` says how words
    come together: the logarithm of the sum of exponentials (training), the largest (the released zero-shot), or the
    mean. temp3 is the term's scale. ``skip`` first parts of each text are left out (the released zero-shot: 1).
    A pair without a real place or word scores 0.
    """
    raise NotImplementedError
