"""GLoRIA's local similarity: each word looks at the places of a picture, and is compared with what it sees.

All words of all texts are multiplied with all places at once; padded words are never among them. The mean of the places
that a word looks at is never made: with ``s = C e``, the products of places and word, and ``a``, how much the word
looks at each place, its product with the word is ``aᵀ s`` and its squared length ``aᵀ (C Cᵀ) a``: one small matrix an
image instead of a vector for each word and image.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from unicl.errors import UserError, suggest
from unicl.similarity.parts import parts_of
from unicl.space import Embedding, Parts

Over = Literal["sum", "max", "mean"]
OVER: Final[tuple[str, ...]] = get_args(Over)
Groups = tuple[tuple[int, int], ...]
"""How many texts have how many words, for texts of equal length side by side."""
EPS: Final = 1e-8
"""The least product of both lengths that a cosine is divided by, as in GLoRIA's released code."""
SMALL: Final = 1e-30
"""Shares below count as 0: they change no digit, and numbers below 1e-38 slow a processor down several times."""


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
    come together: the logarithm of the sum of exponentials (training) or of their mean, or the largest (the released
    zero-shot). temp3 is the term's scale. ``skip`` first parts of each text are left out (the released zero-shot: 1).
    A pair without a real place or word scores 0.

    Sums are float32 or better whatever the parts are. Memory beside the table, for each pair of a real word and a
    place: 12 bytes from scoring until the gradient is taken. Raises `UserError` for an unknown ``over``.
    """
    if over not in OVER:
        near, known = suggest(over, OVER), ", ".join(OVER)
        raise UserError(f"the similarity 'attended' has no over={over!r}{near}; give one of {known}")
    ours, theirs = parts_of(images, "images", of="attended"), parts_of(texts, "texts", of="attended")
    words = _words(theirs.mask, skip=skip)
    with torch.autocast(ours.values.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(ours.values.dtype, theirs.values.dtype), torch.float32)
        places_IPD, visible_IP = _places(ours, dtype=dtype)
        words_ND = theirs.values.flatten(0, 1).index_select(0, words.rows).to(dtype)
        cosines_NI = _Looks.apply(words_ND, places_IPD, visible_IP, words.groups, sharpness, words_first)
        scores_TI = _together(gain * cosines_NI, words, over=over)
    scores = torch.where(ours.mask.any(1)[:, None], scores_TI.T, 0)
    return scores, scores


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """The real words of texts, those of texts of equal length side by side.

    ``rows (N,)`` are their numbers among all words of all texts, padding included; ``mask (T, Q)`` says which words
    take part.
    """

    rows: Tensor
    groups: Groups
    mask: Tensor


def _words(mask_TQ: Tensor, *, skip: int) -> _Words:
    mask = mask_TQ & (torch.arange(mask_TQ.shape[1], device=mask_TQ.device) >= skip)
    lengths, order = mask.sum(1).sort(stable=True)
    rows, columns = mask[order].nonzero().unbind(1)
    found, counts = torch.unique_consecutive(lengths, return_counts=True)
    groups = tuple((count, length) for count, length in zip(counts.tolist(), found.tolist(), strict=True) if length)
    return _Words(rows=order[rows] * mask.shape[1] + columns, groups=groups, mask=mask)


def _places(parts: Parts, *, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The places with zeros where none is real, and which of them can be looked at; None is all of them."""
    values, mask = parts.values.to(dtype), parts.mask
    if bool(mask.all()):
        return values, None
    # An image without a place looks at zeros, and its scores are set to 0 later: a softmax of nothing is not a number.
    return torch.where(mask[:, :, None], values, 0), mask | ~mask.any(1, keepdim=True)


def _together(agreement_NI: Tensor, words: _Words, *, over: Over) -> Tensor:
    """``(T, I)``: a text's score of its words'; 0 for a text that has none."""
    texts, longest = words.mask.shape
    numbers = words.mask.sum(1, keepdim=True)
    absent = torch.where(numbers > 0, -torch.inf, 0.0).to(agreement_NI)
    table = absent[:, :, None].expand(texts, longest, agreement_NI.shape[1]).flatten(0, 1)
    table_TQI = table.index_copy(0, words.rows, agreement_NI).view(texts, longest, agreement_NI.shape[1])
    match over:
        case "max":
            scores = table_TQI.amax(1)
        case "sum":
            scores = table_TQI.logsumexp(1)
        case "mean":
            scores = table_TQI.logsumexp(1) - numbers.clamp(min=1).to(table).log()
    return torch.where(numbers > 0, scores, 0)


class _Looks(torch.autograd.Function):
    """``(N, I)``: the cosine of each word with the mean of the places of each image that it looks at.

    The gradient is worked out by hand: everything goes back through one table of products ``(N, I, P)``, so that it
    costs two large products. A cosine does not change with the length of what is seen, so the softmax over places
    passes its gradient on as it is, but where `EPS` takes the place of the lengths.
    """

    @staticmethod
    def forward(
        ctx: Any,
        words_ND: Tensor,
        places_IPD: Tensor,
        visible_IP: Tensor | None,
        groups: Groups,
        sharpness: float,
        words_first: bool,
    ) -> Tensor:
        raw_NIP = (words_ND @ places_IPD.flatten(0, 1).T).view(len(words_ND), *places_IPD.shape[:2])
        shares_NIP = _over_words(raw_NIP, groups) if words_first else raw_NIP
        looks_NIP = _over_places(shares_NIP, visible_IP, sharpness)
        seen_NIP = _seen(looks_NIP, places_IPD)
        inner_NI, squares_NI = (looks_NIP * raw_NIP).sum(2), (looks_NIP * seen_NIP).sum(2)
        widths_N1 = torch.linalg.vector_norm(words_ND, dim=1, keepdim=True)
        # Where places cancel out, rounding may leave less length than the product shows: no cosine is above 1.
        squares_NI = squares_NI.maximum((inner_NI / widths_N1.clamp(min=EPS)).square())
        lengths_NI: Tensor = squares_NI.sqrt() * widths_N1
        kept = (raw_NIP, looks_NIP, seen_NIP, inner_NI, squares_NI, lengths_NI)
        ctx.save_for_backward(words_ND, places_IPD, *kept)
        ctx.groups, ctx.sharpness, ctx.words_first = groups, sharpness, words_first
        return inner_NI / lengths_NI.clamp(min=EPS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        words_ND, places_IPD, *kept = ctx.saved_tensors
        raw_NIP, looks_NIP, seen_NIP, inner_NI, squares_NI, lengths_NI = kept
        with torch.autocast(words_ND.device.type, enabled=False):
            inner = grads[0] / lengths_NI.clamp(min=EPS)
            fall = inner * inner_NI
            short = lengths_NI < EPS
            squares = torch.where(short, 0, -fall / squares_NI)
            raw = (raw_NIP * inner[:, :, None]).addcmul_(seen_NIP, squares[:, :, None])
            raw.sub_(torch.where(short, fall, 0)[:, :, None]).mul_(looks_NIP).mul_(ctx.sharpness)
            if ctx.words_first:
                _back_over_words(raw, _over_words(raw_NIP, ctx.groups), ctx.groups)
            raw.addcmul_(looks_NIP, inner[:, :, None])
            table = raw.flatten(1)
            words = places = None
            if ctx.needs_input_grad[0]:
                words = _shrunk(words_ND, torch.where(short, 0, fall).sum(1))
                words.addmm_(table, places_IPD.flatten(0, 1))
            if ctx.needs_input_grad[1]:
                places = (table.T @ words_ND).view(places_IPD.shape)
                first = looks_NIP.permute(1, 2, 0)
                gram_IPP = torch.bmm(first, (looks_NIP * squares[:, :, None]).transpose(0, 1))
                places.baddbmm_(gram_IPP, places_IPD)
        return words, places, None, None, None, None


def _over_words(raw_NIP: Tensor, groups: Groups) -> Tensor:
    """The softmax over the words of each text, at each place of each image."""
    shares = torch.empty_like(raw_NIP)
    for wide, out in zip(_by_text(raw_NIP, groups), _by_text(shares, groups), strict=True):
        torch.softmax(wide, 1, out=out)
    return F.threshold(shares, SMALL, 0.0, inplace=True)


def _back_over_words(gradient_NIP: Tensor, shares_NIP: Tensor, groups: Groups) -> None:
    """The gradient of `_over_words`, in place."""
    gradient_NIP.mul_(shares_NIP)
    for wide, shares in zip(_by_text(gradient_NIP, groups), _by_text(shares_NIP, groups), strict=True):
        wide.addcmul_(shares, wide.sum(1, keepdim=True), value=-1)


def _by_text(table_NIP: Tensor, groups: Groups) -> list[Tensor]:
    """``(texts, words, I * P)`` for each length of texts."""
    parts = torch.split(table_NIP.flatten(1), [count * length for count, length in groups])
    return [part.view(*group, part.shape[1]) for part, group in zip(parts, groups, strict=True)]


def _over_places(shares_NIP: Tensor, visible_IP: Tensor | None, sharpness: float) -> Tensor:
    sharp = shares_NIP * sharpness
    if visible_IP is not None:
        sharp.masked_fill_(~visible_IP, -torch.inf)
    return F.threshold(sharp.softmax(2), SMALL, 0.0, inplace=True)


def _seen(looks_NIP: Tensor, places_IPD: Tensor) -> Tensor:
    """``(N, I, P)``: the product of each place with the mean of the places that a word looks at."""
    gram_IPP = torch.bmm(places_IPD, places_IPD.transpose(1, 2))
    return torch.bmm(looks_NIP.transpose(0, 1), gram_IPP).transpose(0, 1)


def _shrunk(words_ND: Tensor, fall_N: Tensor) -> Tensor:
    """The gradient of the words by their lengths."""
    squares = words_ND.square().sum(1)
    return words_ND * torch.where(squares > 0, -fall_N / squares, 0)[:, None]
