"""How likely a text is, given an image, to a term that predicts captions: what scores classes without a text tower."""

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn

from unicl.objective.bag import Bag
from unicl.objective.predict import Caption
from unicl.space import Embedding, Parts
from unicl.towers.decoder import Decoder

NUMBERS: Final = 1 << 24
"""Numbers that are held at once for pairs of an image and a text: 64 MB in float32."""


def teller(terms: Iterable[nn.Module]) -> Bag | Caption | None:
    """The first of the terms that says how likely a text is: it writes captions, or predicts the words of them."""
    return next((t for t in terms if isinstance(t, Bag) or (isinstance(t, Caption) and t.decoder.causal)), None)


def writer(terms: Iterable[nn.Module]) -> Caption | None:
    """The first of the terms that predicts the words of a caption one after another."""
    return next((term for term in terms if isinstance(term, Caption) and term.decoder.causal), None)


@torch.no_grad()
def log_likelihoods(term: Bag | Caption, images: Embedding, tokens: Tensor, *, mask: Tensor) -> Tensor:
    """``(I, T)``: log p of texts ``tokens (T, L)`` given images, and what stands for it where order does not matter.

    A decoder: the sum over all tokens behind the start mark, the end mark among them, read forwards. A bag: the mean
    over the different words, and minus infinity for a text without any (neither is said by CLIP, figure 2).
    """
    if isinstance(term, Bag):
        return term.log_likelihood(images, tokens, mask)
    assert images.parts is not None
    texts, settings = len(tokens), term.settings
    if not texts or not len(images.whole):
        return torch.zeros(len(images.whole), texts, device=tokens.device)
    kept = 2 * settings.layers * settings.width * (images.parts.mask.shape[1] + tokens.shape[1])
    pairs = max(NUMBERS // max(term.decoder.size, kept), 1)
    some = [(tokens[k : k + pairs], mask[k : k + pairs]) for k in range(0, texts, pairs)]
    rows = torch.split(torch.arange(len(images.whole), device=tokens.device), max(pairs // texts, 1))
    places = (images.parts.select(each) for each in rows)
    return torch.cat([torch.cat([_sums(term.decoder, each, *few) for few in some], dim=1) for each in places])


def _sums(decoder: Decoder, places: Parts, tokens: Tensor, mask: Tensor) -> Tensor:
    """``(I, T)``; what all texts begin with is read once an image."""
    alike = min(int((tokens == tokens[0]).all(0).long().cumprod(0).sum()), int(mask.sum(1).min()) - 1)
    images, texts = len(places.mask), len(tokens)
    past, sums = decoder.begin(places), torch.zeros(images, texts, device=tokens.device)
    for at in range(alike):
        sums = sums + _log_p(decoder.step(tokens[0, at].expand(images), past))[:, tokens[:, at + 1]]
    past.take(torch.arange(images, device=tokens.device).repeat_interleave(texts))
    for at in range(alike, tokens.shape[1] - 1):
        chances = _log_p(decoder.step(tokens[:, at].repeat(images), past)).view(images, texts, -1)
        following = tokens[:, at + 1].expand(images, texts)[..., None]
        sums = sums + chances.gather(2, following)[..., 0].masked_fill(~mask[:, at + 1], 0)
    return sums


def _log_p(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(1)
