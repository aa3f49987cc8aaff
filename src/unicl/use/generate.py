"""Texts written token by token: the likeliest of several beams, or drawn from the likeliest tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unicl.data.keys import text_key
from unicl.errors import UserError
from unicl.objective.words import Words
from unicl.space import Parts
from unicl.towers.decoder import Decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A text: its tokens without marks, and its log-likelihood, that of its end mark included."""

    tokens: tuple[int, ...]
    score: float


@torch.no_grad()
def beam_search(
    decoder: Decoder,
    places: Parts,
    *,
    words: Words,
    beams: int = 5,
    most: int = 30,
    normalise: bool = False,
    repeats: bool = True,
) -> list[Written]:
    """The likeliest text of each picture, as far as ``beams`` beginnings at a time can find it; one beam is greedy.

    Of at most ``most`` tokens, the end mark included, and at least one word. As in VirTex's code (v1.2) the sum of
    log p decides, five beams are usual, and a text that has ended stays as it is; unlike there, each beam may go on in
    any number of ways, not in two, and the start mark is read at every step, not at the first alone. ``repeats`` off:
    no token stands right behind itself, as there. ``normalise`` compares means over tokens in place of sums.
    """
    rows, device = len(places.values), places.values.device
    past = decoder.begin(places.select(torch.arange(rows, device=device).repeat_interleave(beams)))
    tokens = torch.full((rows, beams, 1), words.start, device=device)
    # All beams begin alike: the first alone goes on, and fills the places of the others.
    sums = torch.full((rows, beams), -torch.inf, device=device)
    sums[:, 0] = 0.0
    counts, ended = torch.zeros_like(sums), torch.zeros(rows, beams, dtype=torch.bool, device=device)
    for number in range(most if rows else 0):
        last = tokens[..., -1].flatten()
        chances = _chances(decoder.step(last, past), last, words=words, first=number == 0, repeats=repeats)
        chances = _with_ends(chances.view(rows, beams, -1), ended=ended, words=words)
        longer, counts = sums[..., None] + chances, counts + (~ended).to(counts)
        chosen = (longer / counts[..., None] if normalise else longer).flatten(1).topk(beams).indices
        own, following = chosen // chances.shape[-1], chosen % chances.shape[-1]
        sums, counts = longer.flatten(1).gather(1, chosen), counts.gather(1, own)
        tokens = torch.cat([tokens.gather(1, own[..., None].expand_as(tokens)), following[..., None]], dim=2)
        ended = ended.gather(1, own) | (following == words.end)
        # Sums only fall, so that a text that has ended in front stays there; means may rise.
        if bool((ended.all(1) if normalise else ended[:, 0]).all()):
            break
        past.take((own + beams * torch.arange(rows, device=device)[:, None]).flatten())
    return _written(tokens[:, 0], sums[:, 0], words=words)


@torch.no_grad()
def nucleus(
    decoder: Decoder, places: Parts, *, words: Words, draws: Tensor, share: float = 0.9, repeats: bool = True
) -> list[Written]:
    """A text for each picture, each token drawn from the fewest likeliest that have ``share`` (Holtzman et al. 2020).

    ``draws (N, most)`` are numbers from 0 to 1, one for each token that may be written (`draws_for`). ``repeats`` off:
    no token is drawn right behind itself (VirTex's code, which forbids it after the nucleus is cut; here before).
    Raises `UserError` for a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UserError(f"the nucleus is {share:g}; give the share of the probability to draw from, such as 0.9")
    rows, device = len(places.values), places.values.device
    past = decoder.begin(places)
    tokens = torch.full((rows, 1), words.start, device=device)
    sums, ended = torch.zeros(rows, device=device), torch.zeros(rows, dtype=torch.bool, device=device)
    for number in range(draws.shape[1] if rows else 0):
        last = tokens[:, -1]
        chances = _chances(decoder.step(last, past), last, words=words, first=number == 0, repeats=repeats)
        drawn = _drawn(chances.softmax(1), draws[:, number].to(chances), share=share).masked_fill(ended, words.end)
        sums = sums + chances.gather(1, drawn[:, None])[:, 0].masked_fill(ended, 0)
        tokens = torch.cat([tokens, drawn[:, None]], dim=1)
        ended = ended | (drawn == words.end)
        if bool(ended.all()):
            break
    return _written(tokens, sums, words=words)


def draws_for(names: Sequence[str], *, seed: int, most: int) -> Tensor:
    """``(N, most)`` numbers from 0 to 1 for `nucleus`: of a picture's name and the seed, whatever it comes with."""
    found = torch.empty(len(names), most)
    for row, name in zip(found, names, strict=True):
        row.uniform_(generator=torch.Generator().manual_seed(text_key(f"{seed} {name}") & (1 << 63) - 1))
    return found


def _chances(scores: Tensor, last: Tensor, *, words: Words, first: bool, repeats: bool) -> Tensor:
    """``(M, V)`` log p of the token behind ``last (M,)``; minus infinity for what is never written there."""
    banned = ({words.pad, words.start, words.mask} - {words.end}) | ({words.end} if first else set())
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    chances = wide.log_softmax(1).index_fill(1, torch.tensor(sorted(banned), device=scores.device), -torch.inf)
    return chances if repeats else chances.scatter(1, last[:, None], -torch.inf)


def _with_ends(chances: Tensor, *, ended: Tensor, words: Words) -> Tensor:
    """The same, where a text that has ended goes on with nothing but its end mark, at no cost."""
    only = torch.full_like(chances[:1, :1], -torch.inf)
    only[..., words.end] = 0.0
    return torch.where(ended[..., None], only, chances)


def _drawn(shares: Tensor, draws: Tensor, *, share: float) -> Tensor:
    """``(M,)``: the token on which each of ``draws (M,)`` falls among the likeliest of ``shares (M, V)``."""
    values, order = shares.sort(dim=1, descending=True, stable=True)
    before = values.cumsum(1) - values
    inside = values.masked_fill(before >= share, 0)
    reached = inside.cumsum(1)
    place = torch.searchsorted(reached, draws[:, None] * reached[:, -1:], right=True)
    last = (inside > 0).sum(1, keepdim=True) - 1
    return order.gather(1, torch.minimum(place, last))[:, 0]


def _written(tokens: Tensor, sums: Tensor, *, words: Words) -> list[Written]:
    found = []
    for row, score in zip(tokens[:, 1:].tolist(), sums.tolist(), strict=True):
        end = row.index(words.end) if words.end in row else len(row)
        found.append(Written(tokens=tuple(row[:end]), score=score))
    return found
