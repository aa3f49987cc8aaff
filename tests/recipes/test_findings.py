"""MedCLIP: matched by findings, in values and gradients, with both of its targets."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import oracles
from tiny import tiny
from unicl.data.collate import FindingValues
from unicl.errors import UserError
from unicl.objective.plan import Tiling
from unicl.objective.terms import ContrastSettings, Objective
from unicl.recipes.findings import MEDCLIP, medclip
from unicl.recipes.whole import clip
from unicl.space import Columns, Embedding, Keys, Parts, TextType

SCALE = Objective(medclip().terms, features=8).double().terms["findings"].scale().detach()
PRESENT = [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
SAID = [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]
SIGNED = [[1, -1, 0], [1, 1, -1], [0, 0, 0], [-1, -1, 1], [1, -1, 0]]
SAID_SIGNED = [[-1, 1, 1], [1, 0, -1], [0, 0, 0], [1, 1, 1]]


def unit(rows, *, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 8, dtype=torch.float64, generator=generator), dim=-1).requires_grad_()


def keys(rows):
    """Rows of findings as a batch carries them: zero once where nothing counts."""
    entries = [(r, 1 + c, float(v)) for r, row in enumerate(rows) for c, v in enumerate(row) if v]
    entries += [(r, 1, 0.0) for r, row in enumerate(rows) if not any(row)]
    own, number, weights = zip(*entries)
    types = torch.full((len(own),), int(TextType.FINDING))
    weight = torch.tensor(weights, dtype=torch.float64)
    return Keys(rows=torch.tensor(own), keys=torch.tensor(number), types=types, weights=weight, size=len(rows))


def columns(images, texts, image_rows, text_rows, counts=None):
    return Columns(
        images=Embedding(whole=images, features=images),
        image_keys=keys(image_rows),
        texts=Embedding(whole=texts, features=texts),
        text_keys=keys(text_rows),
        text_counts=torch.ones(len(texts)).double() if counts is None else torch.tensor(counts).double(),
    )


def loss_and_gradients(recipe, *sides, counts=None, tiling=Tiling()):
    images, texts = unit(len(sides[0]), seed=1), unit(len(sides[1]), seed=2)
    objective = Objective(recipe.terms, features=8).double()
    loss = objective(columns(images, texts, *sides, counts), tiling=tiling)[0]
    loss.backward()
    return loss, images.grad, texts.grad


@pytest.mark.parametrize(("match", "sides"), [("cosine", (PRESENT, SAID)), ("dot", (SIGNED, SAID_SIGNED))])
@pytest.mark.parametrize("keep", [1 << 30, 1])
def test_loss_and_gradients_are_those_of_plain_loops(match, sides, keep):
    loss, *gradients = loss_and_gradients(medclip(match=match), *sides, tiling=Tiling(keep=keep))
    images, texts = unit(5, seed=1), unit(4, seed=2)
    scores = SCALE * (images @ texts.T)
    rows = [row.unbind() for row in scores.unbind()]
    expected = oracles.medclip(rows, *sides, kind=match, log_sum_exp=lambda row: torch.stack(row).logsumexp(0))
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, [images.grad, texts.grad], rtol=1e-10, atol=1e-14)


def test_nothing_in_common_is_a_uniform_target_and_not_nothing():
    none = [[0, 0, 0]] * 4
    loss, images, _ = loss_and_gradients(medclip(), none, none)
    scores = SCALE * unit(4, seed=1) @ unit(4, seed=2).T
    uniform = torch.full((4, 4), 0.25, dtype=torch.float64)
    expected = (F.cross_entropy(scores, uniform) + F.cross_entropy(scores.T, uniform)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert float(loss.detach()) >= torch.tensor(4.0).log()
    assert images.abs().max() > 0


def sharp(recipe, by, **changes):
    return replace(recipe, terms=tuple(replace(term, sharpness=by, **changes) for term in recipe.terms))


@pytest.mark.parametrize("similarity", ["cosine", "tokenwise"])
@pytest.mark.parametrize(("match", "sides"), [("cosine", (PRESENT, SAID)), ("dot", (SIGNED, SAID_SIGNED))])
def test_a_sharp_target_leaves_no_row_without_mass(match, sides, similarity):
    # exp(1000 s) of a row that has no equal beside one that has is nothing in any precision.
    recipe = sharp(medclip(match=match), 1000.0, similarity=similarity)
    images, texts = unit(5, seed=1), unit(4, seed=2)
    batch = columns(images, texts, *sides)
    if similarity == "tokenwise":  # of one part each, the cosine
        one = [
            Embedding(whole=side, features=side, parts=Parts(values=side[:, None], mask=torch.ones(len(side), 1) > 0))
            for side in (images, texts)
        ]
        batch = replace(batch, images=one[0], texts=one[1])
    loss = Objective(recipe.terms, features=8).double()(batch)[0]
    loss.backward()
    gradients = [images.grad.clone(), texts.grad.clone()]
    images.grad = texts.grad = None
    rows = [row.unbind() for row in (SCALE * (images @ texts.T)).unbind()]
    options = {"kind": match, "sharpness": 1000.0, "log_sum_exp": lambda row: torch.stack(row).logsumexp(0)}
    expected = oracles.medclip(rows, *sides, **options)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, [images.grad, texts.grad], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("by", [0.0, -1.0, float("nan")])
def test_a_target_is_sharp_by_a_number_above_0(by):
    with pytest.raises(UserError, match="'findings' has sharpness .*give a number above 0"):
        Objective(sharp(medclip(), by).terms, features=8)


def test_distinct_findings_times_a_thousand_are_clip():
    own = torch.eye(5).tolist()
    found = loss_and_gradients(sharp(medclip(match="dot"), 1000.0), own, own)
    images, texts = unit(5, seed=1), unit(5, seed=2)
    pairs = Keys.single(torch.arange(1, 6))
    batch = replace(columns(images, texts, own, own), image_keys=pairs, text_keys=pairs)
    loss = Objective(clip().terms, features=8).double()(batch)[0]
    loss.backward()
    torch.testing.assert_close(found, (loss, images.grad, texts.grad), rtol=1e-12, atol=1e-15)


def test_the_papers_target_gives_one_hot_findings_little_of_its_mass():
    # One of 100 distinct findings gets e / (e + 99) of a row (spec, section 6.2).
    from unicl.objective.targets import finding_target

    rows = keys(torch.eye(100).tolist())
    dense = finding_target(rows, rows).dense()
    share = dense[0, 0] / dense[0].sum()
    assert float(share) == pytest.approx(2.718281828 / (2.718281828 + 99), rel=1e-6)


def test_a_text_of_many_samples_counts_as_often():
    once = loss_and_gradients(medclip(), PRESENT, SAID, counts=[2.0, 1.0, 1.0, 3.0])
    again = [SAID[0], SAID[0], SAID[1], SAID[2], *[SAID[3]] * 3]
    texts, images = unit(4, seed=2), unit(5, seed=1)
    repeated = texts[[0, 0, 1, 2, 3, 3, 3]]
    objective = Objective(medclip().terms, features=8).double()
    loss = objective(columns(images, repeated, PRESENT, again))[0]
    loss.backward()
    torch.testing.assert_close(once, (loss, images.grad, texts.grad), rtol=1e-12, atol=1e-14)


def test_with_a_second_view_of_the_texts_the_loss_is_the_mean_of_both_as_in_the_released_code():
    again = [*SAID_SIGNED, *SAID_SIGNED]
    images, texts = unit(5, seed=1), unit(8, seed=2)
    batch = columns(images, texts, SIGNED, again)
    number = torch.arange(4, 8)
    found = batch.text_keys
    marked = replace(
        found,
        rows=torch.cat([found.rows, number]),
        keys=torch.cat([found.keys, torch.full_like(number, 77)]),
        types=torch.cat([found.types, torch.full_like(number, int(TextType.VIEW))]),
        weights=torch.cat([found.weights, torch.ones(4).double()]),
    )
    Objective(medclip(match="dot").terms, features=8).double()(replace(batch, text_keys=marked))[0].backward()
    gradients, loss = (images.grad, texts.grad), 0.0
    images, texts = unit(5, seed=1), unit(8, seed=2)
    for view in texts.split(4):
        rows = [row.unbind() for row in (SCALE * (images @ view.T)).unbind()]
        loss = loss + oracles.medclip(
            rows, SIGNED, SAID_SIGNED, kind="dot", log_sum_exp=lambda row: torch.stack(row).logsumexp(0)
        )
    (loss / 2).backward()
    torch.testing.assert_close(gradients, (images.grad, texts.grad), rtol=1e-10, atol=1e-14)


def test_the_released_form_shows_each_text_a_second_time_and_both_leave_out_short_sentences():
    assert [medclip(match=match).data.text_views for match in ("cosine", "dot")] == [1, 2]
    assert medclip().data.sentences
    assert medclip().data.least_words == 5


def test_findings_and_pairs_live_in_one_batch():
    # Pairs see the rows with captions alone; findings are never equal keys.
    terms = (ContrastSettings(name="pairs", texts="captions"), ContrastSettings(name="findings", texts="findings"))
    images, texts = unit(3, seed=1), unit(3, seed=2)
    batch = columns(images, texts, [[1, 0], [1, 0], [0, 1]], [[1, 0], [1, 0], [0, 1]])
    caption = int(TextType.CAPTION)

    def paired(keys, *rows):
        more = torch.tensor(rows)
        return replace(
            keys,
            rows=torch.cat([keys.rows, more]),
            keys=torch.cat([keys.keys, 90 + more]),
            types=torch.cat([keys.types, torch.full_like(more, caption)]),
            weights=torch.cat([keys.weights, torch.ones(len(more)).double()]),
        )

    both = replace(batch, image_keys=paired(batch.image_keys, 0, 1), text_keys=paired(batch.text_keys, 0, 1))
    parts = Objective(terms, features=8).double()(both)[1]
    scores = (SCALE * images[:2] @ texts[:2].T).detach()
    label = torch.arange(2)
    expected = (F.cross_entropy(scores, label) + F.cross_entropy(scores.T, label)) / 2
    torch.testing.assert_close(parts["pairs"], expected, rtol=1e-12, atol=0)


def test_texts_are_pooled_from_three_layers_with_or_without_padding():
    assert (medclip().text.states, medclip().text.pool) == ((1, 2, -1), "mean")
    assert medclip(match="dot").data.findings == FindingValues(absent=-1.0)
    assert MEDCLIP["swin"].image.name.startswith("swin_tiny")
    assert medclip(towers="resnet50").data.batch == 100
    assert tiny("medclip").terms[0].texts == "findings"


def test_findings_are_no_yes_or_no():
    with pytest.raises(UserError, match="findings are shared more or less; take loss 'softmax'"):
        Objective([ContrastSettings(name="findings", texts="findings", loss="sigmoid")], features=8)
