"""Comparisons of images and texts that the tests of the blockwise losses share, and their dense counterpart."""

import torch
from torch.nn import functional as F

from unicl.objective import losses
from unicl.objective.blockwise import Side
from unicl.objective.peers import ALONE, own_rows
from unicl.objective.targets import affinity, paired, same_key, shared_findings, yes_or_no
from unicl.space import Embedding, Keys, Parts


def keys(rng, rows, *, each, known):
    """Rows with none to ``each`` keys of different weights."""
    held = [(row, int(key)) for row in range(rows) for key in rng.choice(known, rng.integers(each + 1), replace=False)]
    numbers, own = torch.tensor(held, dtype=torch.int64).reshape(-1, 2).unbind(1)
    weights = torch.tensor(rng.uniform(0.2, 1.0, len(held)))
    return Keys(rows=numbers, keys=own + 7, types=torch.zeros_like(numbers), weights=weights, size=rows)


def target(kind, rng, *, images, texts):
    """Of every kind that the library has."""
    match kind:
        case "paired":
            return paired(images)
        case "classes":
            return same_key(*(Keys.single(torch.tensor(rng.integers(0, 9, n))) for n in (images, texts)))
        case "one key":
            return same_key(*(Keys.single(torch.ones(n, dtype=torch.int64)) for n in (images, texts)))
        case "typed":
            return same_key(keys(rng, images, each=3, known=12), Keys.single(torch.tensor(rng.integers(5, 25, texts))))
        case "several":
            return same_key(*(keys(rng, n, each=3, known=6) for n in (images, texts)))
        case "mixed":
            return affinity(*(torch.tensor(rng.dirichlet([0.3] * 5, n)) for n in (images, texts)))
        case "cosine" | "dot":
            return shared_findings(
                *(torch.tensor(rng.integers(-1, 2, (n, 4))).double() for n in (images, texts)), similarity=kind
            )
        case "nothing":
            return same_key(Keys.empty(images), Keys.empty(texts))


KINDS = ("paired", "classes", "one key", "typed", "several", "mixed", "cosine", "dot", "nothing")


def vectors(rng, rows, *, width=6):
    return F.normalize(torch.tensor(rng.normal(size=(rows, width))), dim=1)


def embedding(rng, rows, *, parts):
    """Whole vectors and up to ``parts`` parts, of which the first is always real."""
    values = F.normalize(torch.tensor(rng.normal(size=(rows, parts, 6))), dim=2)
    mask = torch.tensor(rng.random((rows, parts)) < 0.7)
    mask[:, 0] = True
    whole = vectors(rng, rows)
    return Embedding(whole=whole, features=whole[:, :0], parts=Parts(values=values, mask=mask))


def token_wise(images, texts):
    """A similarity of parts: FILIP, section 3.1, each part's best partner, averaged; two different tables."""
    products = torch.einsum("ikd,jrd->ijkr", images.parts.values, texts.parts.values)
    by_image = products.masked_fill(~texts.parts.mask[None, :, None, :], -torch.inf).amax(3)
    by_text = products.masked_fill(~images.parts.mask[:, None, :, None], -torch.inf).amax(2)
    image_mask, text_mask = images.parts.mask[:, None].to(products), texts.parts.mask[None].to(products)
    return (by_image * image_mask).sum(2) / image_mask.sum(2), (by_text * text_mask).sum(2) / text_mask.sum(2)


def part(whole, place):
    """This process's rows of an embedding."""
    return whole.select(place)


def compare(loss, case, /, *, peers=ALONE, sizes=None, **options):
    """Loss and gradients of one process's rows ; ``case`` is (images, texts, target, counts, scale, bias)."""
    images, texts, wanted, counts, scale, bias = case
    own = []
    for embedding, each in zip((images, texts), sizes or ((len(images.whole),), (len(texts.whole),))):
        mine = embedding.select(own_rows(each, rank=peers.rank))
        leaves = [mine.whole.clone().requires_grad_()]
        parts = mine.parts
        if parts is not None:
            leaves.append(parts.values.clone().requires_grad_())
            parts = Parts(values=leaves[1], mask=parts.mask)
        total = counts if embedding is texts else torch.ones(len(images.whole)).to(images.whole)
        side = Side(
            embedding=Embedding(whole=leaves[0], features=leaves[0][:, :0], parts=parts), counts=total, sizes=each
        )
        own.append((side, leaves))
    log_scale = torch.tensor(scale, dtype=images.whole.dtype).log().requires_grad_()
    shift = torch.tensor(bias, dtype=images.whole.dtype, requires_grad=True)
    value = loss(own[0][0], own[1][0], target=wanted, scale=log_scale.exp(), bias=shift, peers=peers, **options)
    value.backward()
    leaves = [*own[0][1], *own[1][1], log_scale, shift]
    return value.detach(), [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def dense_softmax(images, texts, *, target, scale, bias, peers, image_weight=0.5, smoothing=0.0):
    """The dense loss of cosines, with the arguments of the blockwise one."""
    del bias, peers
    scores = scale * images.embedding.whole @ texts.embedding.whole.T
    options = {"counts": texts.counts, "image_weight": image_weight, "smoothing": smoothing}
    return losses.softmax(scores, target.dense(), **options)


def dense_sigmoid(images, texts, *, target, scale, bias, peers, smoothing=0.0):
    del peers
    scores = scale * images.embedding.whole @ texts.embedding.whole.T + bias
    return losses.sigmoid(scores, yes_or_no(target).dense(), counts=texts.counts, smoothing=smoothing)


def dense_token_wise(images, texts, *, target, scale, bias, peers, image_weight=0.5, smoothing=0.0):
    """Each direction of its own table: the dense loss of one table with all weight on one direction, twice."""
    del bias, peers
    by_image, by_text = token_wise(images.embedding, texts.embedding)
    options = {"counts": texts.counts, "smoothing": smoothing}
    first = losses.softmax(scale * by_image, target.dense(), image_weight=1.0, **options)
    second = losses.softmax(scale * by_text, target.dense(), image_weight=0.0, **options)
    return image_weight * first + (1 - image_weight) * second


def case(rng, kind, *, images=11, texts=8, scale=14.3, bias=-3.0, parts=None):
    """One comparison; ``paired`` is square."""
    texts = images if kind == "paired" else texts
    wanted = target(kind, rng, images=images, texts=texts)
    counts = torch.tensor(rng.integers(1, 4, texts)).double()
    if parts is None:
        made = [Embedding(whole=v, features=v[:, :0]) for v in (vectors(rng, images), vectors(rng, texts))]
    else:
        made = [embedding(rng, n, parts=p) for n, p in zip((images, texts), parts)]
    return (*made, wanted, counts, scale, bias)


def close(left, right, *, tolerance=1e-12):
    """Whether two results of `compare` are equal but for rounding."""
    pairs = [(left[0], right[0]), *zip(left[1], right[1])]
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)
