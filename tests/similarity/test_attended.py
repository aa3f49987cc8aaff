import math

import pytest
import torch
from torch.nn import functional as F

import oracles
from unicl.errors import UserError
from unicl.objective import tiled
from unicl.objective.blockwise import Side
from unicl.objective.plan import Tiling
from unicl.objective.targets import paired
from unicl.similarity.attended import attended
from unicl.space import Embedding, Parts

WAYS = [{"over": over, "words_first": first} for over in ("sum", "max", "mean") for first in (True, False)]


def embedding(values, mask):
    whole = values[:, 0]
    return Embedding(whole=whole, features=whole[:, :0], parts=Parts(values=values, mask=mask))


def prefixes(lengths, longest):
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def case(*, images=4, places=5, texts=3, words=4, width=3, seed=0, holes=True):
    """Regions and words in float64: ragged, with holes, and, with holes, an image and a text of nothing real."""
    rng = torch.Generator().manual_seed(seed)
    values = [torch.randn(n, p, width, generator=rng).double() for n, p in ((images, places), (texts, words))]
    masks = [torch.rand(v.shape[:2], generator=rng) < 0.7 for v in values]
    for mask in masks:
        mask[:, -2:] = True
        mask[-1] = not holes
    if not holes:
        masks[0][:] = True
    return [embedding(v, m) for v, m in zip(values, masks, strict=True)]


def real(parts):
    """The real parts of each row, as lists."""
    return [values[mask].tolist() for values, mask in zip(parts.values, parts.mask, strict=True)]


def loops(images, texts, **way):
    """The table that the oracle makes."""
    rows = [[oracles.attended_regions(c, e, **way) for e in real(texts.parts)] for c in real(images.parts)]
    return torch.tensor(rows, dtype=torch.float64)


def moved(one, place, by):
    """The same parts but for one number."""
    values = one.parts.values.clone()
    values.view(-1)[place] += by
    return embedding(values, one.parts.mask)


def table(images, texts, **way):
    first, second = attended(images, texts, **way)
    assert first is second
    return first


def graded(images, texts, weights, **way):
    """The gradients of a weighted sum of scores, of regions and of words."""
    leaves = [one.parts.values.clone().requires_grad_() for one in (images, texts)]
    sides = [embedding(leaf, one.parts.mask) for leaf, one in zip(leaves, (images, texts), strict=True)]
    return torch.autograd.grad((table(*sides, **way) * weights).sum(), leaves)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("holes", [False, True])
def test_scores_are_those_of_loops_over_pairs_regions_and_words(way, holes):
    for sizes in ({}, {"images": 2, "places": 7, "texts": 5, "words": 6, "width": 9}, {"places": 2, "words": 3}):
        images, texts = case(seed=len(sizes), holes=holes, **sizes)
        for sharpness, gain in ((4.0, 5.0), (1.7, 0.6)):
            own = table(images, texts, sharpness=sharpness, gain=gain, **way)
            wanted = loops(images, texts, sharpness=sharpness, gain=gain, **way)
            assert torch.allclose(own, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_the_slopes_of_the_loops(way):
    images, texts = case(images=3, places=3, texts=3, words=3)
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(5)).double()
    step = 1e-5
    for side, own in enumerate(graded(images, texts, weights, **way)):
        slopes = []
        for place in range(own.numel()):
            ends = []
            for by in (step, -step):
                sides = [images, texts]
                sides[side] = moved(sides[side], place, by)
                ends.append((loops(*sides, **way) * weights).sum())
            slopes.append((ends[0] - ends[1]) / (2 * step))
        assert torch.allclose(own.flatten(), torch.stack(slopes), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_pass_torchs_own_check(way):
    images, texts = case(images=3, places=4, texts=4, words=5, width=4, seed=3)
    leaves = [one.parts.values.clone().requires_grad_() for one in (images, texts)]
    masks = images.parts.mask, texts.parts.mask
    assert torch.autograd.gradcheck(lambda c, e: table(embedding(c, masks[0]), embedding(e, masks[1]), **way), leaves)


def test_a_side_that_does_not_learn_gets_no_gradient_and_the_other_the_same():
    images, texts = case()
    both = graded(images, texts, torch.ones(4, 3))
    for side in (0, 1):
        leaf = (images, texts)[side].parts.values.clone().requires_grad_()
        sides = [images, texts]
        sides[side] = embedding(leaf, sides[side].parts.mask)
        assert torch.equal(torch.autograd.grad(table(*sides).sum(), leaf)[0], both[side])


def test_without_sharpness_a_word_sees_the_mean_region():
    images, texts = case(holes=False)
    means = [torch.tensor(c).mean(0) for c in real(images.parts)]
    words = [torch.tensor(e) for e in real(texts.parts)]
    wanted = [[(5 * F.cosine_similarity(mean, e)).logsumexp(0) for e in words] for mean in means]
    assert torch.allclose(table(images, texts, sharpness=0.0), torch.tensor(wanted).double(), rtol=1e-6)


@pytest.mark.parametrize("sharpness", [0.0, 4.0, 1000.0])
@pytest.mark.parametrize("over", ["sum", "max", "mean"])
def test_a_caption_of_one_word_sees_the_mean_region_whatever_the_sharpness(sharpness, over):
    images, texts = case(words=1, holes=False)
    means = images.parts.values.mean(1)
    wanted = 50 * F.cosine_similarity(means[:, None], texts.parts.values[None, :, 0], dim=2)
    assert torch.allclose(10 * table(images, texts, sharpness=sharpness, over=over), wanted, rtol=1e-12)


def test_the_released_softmax_over_words_is_not_in_the_paper():
    images, texts = case(holes=False)
    assert (table(images, texts) - table(images, texts, words_first=False)).abs().min() > 1e-4


def test_the_largest_is_below_the_sum_and_above_the_mean():
    images, texts = case(holes=False)
    total, largest, mean = (table(images, texts, over=over) for over in ("sum", "max", "mean"))
    numbers = texts.parts.mask.sum(1)
    assert (total >= largest).all()
    assert (largest >= mean).all()
    assert torch.allclose(total - mean, numbers.log().double().expand_as(total))


def test_parts_that_are_skipped_are_as_if_they_were_not_there():
    images, texts = case(words=5, holes=False)
    for skip in (1, 2):
        later = embedding(texts.parts.values[:, skip:], texts.parts.mask[:, skip:])
        assert torch.allclose(table(images, texts, skip=skip), table(images, later), rtol=1e-12, atol=1e-12)
    assert not table(images, texts, skip=5).any()


def test_padding_changes_nothing_whatever_it_holds():
    images, texts = case()
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double()
    own = table(images, texts), *graded(images, texts, weights)
    wide = []
    for one, more in ((images, 2), (texts, 6)):
        padded = one.parts.padded(one.parts.mask.shape[1] + more)
        values = torch.where(padded.mask[:, :, None], padded.values, torch.nan)
        wide.append(embedding(values, padded.mask))
    assert torch.allclose(table(*wide), own[0], rtol=1e-13, atol=1e-13)
    for gradient, before, one in zip(graded(*wide, weights), own[1:], (images, texts), strict=True):
        size = one.parts.mask.shape[1]
        assert torch.allclose(gradient[:, :size], before, rtol=1e-12, atol=1e-13)
        assert not gradient[:, size:].any()
        assert not before[~one.parts.mask].any()


@pytest.mark.parametrize("over", ["sum", "max", "mean"])
def test_a_pair_without_a_real_place_or_word_scores_nothing_and_learns_nothing(over):
    images, texts = case()
    scores = table(images, texts, over=over)
    assert not scores[-1].any()
    assert not scores[:, -1].any()
    assert scores[:-1, :-1].all()
    for gradient in graded(images, texts, torch.ones(4, 3), over=over):
        assert gradient.isfinite().all()
        assert not gradient[-1].any()


@pytest.mark.parametrize("sizes", [(0, 3), (4, 0), (0, 0)])
def test_no_images_or_no_texts_make_an_empty_table(sizes):
    images, texts = (one.select(slice(0, size)) for one, size in zip(case(), sizes, strict=True))
    assert table(images, texts).shape == sizes
    assert all(gradient.numel() == 0 or not gradient.any() for gradient in graded(images, texts, 1.0))


def test_texts_of_pads_only_score_nothing():
    images, texts = case()
    nothing = embedding(texts.parts.values, torch.zeros_like(texts.parts.mask))
    assert not table(images, nothing).any()
    assert all(not gradient.any() for gradient in graded(images, nothing, 1.0))


def test_regions_and_words_of_length_zero_give_numbers():
    images, texts = case(holes=False)
    images.parts.values[0] = 0
    texts.parts.values[0, 1] = 0
    assert torch.allclose(table(images, texts), loops(images, texts), rtol=1e-12)
    assert all(gradient.isfinite().all() for gradient in graded(images, texts, torch.ones(4, 3)))


def test_large_products_give_numbers():
    images, texts = case(holes=False)
    images.parts.values.mul_(1e4)
    for way in WAYS:
        assert torch.allclose(table(images, texts, **way), loops(images, texts, **way), rtol=1e-9)
        assert all(gradient.isfinite().all() for gradient in graded(images, texts, torch.ones(4, 3), **way))


def test_places_that_cancel_out_give_cosines():
    images, texts = case(places=6, words=5, width=768, holes=False)
    half = images.parts.values[:, :3].float()
    images = embedding(torch.cat([half, -half], 1), images.parts.mask)
    texts = embedding(texts.parts.values.float(), texts.parts.mask)
    assert (table(images, texts, sharpness=0.0, over="max").abs() <= 5 * (1 + 1e-6)).all()
    assert all(gradient.isfinite().all() for gradient in graded(images, texts, torch.ones(4, 3), sharpness=0.0))


def test_scores_are_float32_under_autocast():
    images, texts = (
        embedding(one.parts.values.float(), one.parts.mask) for one in case(places=9, words=6, width=16, holes=False)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = table(images, texts)
        gradients = graded(images, texts, torch.ones(4, 3))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, table(images, texts))
    assert all(map(torch.equal, gradients, graded(images, texts, torch.ones(4, 3))))
    halves = [embedding(one.parts.values.bfloat16(), one.parts.mask) for one in (images, texts)]
    assert table(*halves).dtype == torch.float32


def test_float32_is_near_float64_at_gloria_s_sizes():
    images, texts = case(images=3, places=49, texts=3, words=20, width=768, holes=False)
    single = [embedding(one.parts.values.float(), one.parts.mask) for one in (images, texts)]
    assert torch.allclose(table(*single).double(), table(images, texts), rtol=2e-6)


def local_loss(images, texts, tiling):
    leaves = [one.parts.values.clone().requires_grad_() for one in (images, texts)]
    sides = [
        Side(embedding=embedding(leaf, one.parts.mask), counts=torch.ones(len(leaf)).double(), sizes=(len(leaf),))
        for leaf, one in zip(leaves, (images, texts), strict=True)
    ]
    scale = torch.tensor(10.0, dtype=torch.float64)
    loss = tiled.softmax(*sides, score=attended, target=paired(len(leaves[0])), scale=scale, tiling=tiling)
    return [loss, *torch.autograd.grad(loss, leaves)]


def test_tiles_and_what_is_kept_of_them_change_nothing():
    images, texts = case(images=7, texts=7, words=6)
    whole = local_loss(images, texts, Tiling(rows=7))
    assert math.isclose(whole[0].item(), oracles.clip((10 * loops(images, texts)).tolist()), rel_tol=1e-12)
    for tiling in (Tiling(), Tiling(rows=1), Tiling(rows=3), Tiling(rows=3, keep=4000), Tiling(rows=2, keep=1 << 20)):
        for own, wanted in zip(local_loss(images, texts, tiling), whole, strict=True):
            assert torch.allclose(own, wanted, rtol=1e-11, atol=1e-12)


def test_an_unknown_way_to_bring_words_together_suggests_a_near_one():
    with pytest.raises(UserError, match="no over='maxi' .did you mean 'max'"):
        attended(*case(), over="maxi")


def test_towers_without_parts_are_named():
    images, texts = case()
    bare = Embedding(whole=texts.whole, features=texts.features)
    with pytest.raises(UserError, match="the text tower gives none"):
        attended(images, bare)
