"""Words of captions predicted in no order, against plain loops."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import oracles
from unicl.errors import UserError
from unicl.objective.bag import Bag, BagSettings
from unicl.objective.peers import share
from unicl.objective.words import Words
from unicl.space import NOTHING, Captions, Columns, Embedding, Keys

PAD, START, END, MASK = 0, 1, 2, 11
WORDS = Words(size=12, pad=PAD, start=START, end=END, mask=MASK)
ROWS = [[START, 5, 7, 5, END, PAD], [START, 4, END, PAD, PAD, PAD], [START, 9, 3, 7, 10, END]]
SAID = [{5, 7}, {4}, {9, 3, 7, 10}]
IMAGES = [2, 0, 1]
ORACLES = {
    "softmax": partial(oracles.bag_of_words, log_sum_exp=lambda row: sum(v.exp() for v in row).log()),
    "sigmoid": oracles.words_asked_one_by_one,
}


def captions(rows, images, *, wanted=None):
    tokens = torch.tensor(rows)
    hidden = torch.full_like(tokens, NOTHING) if wanted is None else wanted
    rows = torch.arange(len(tokens))
    return Captions(images=torch.tensor(images), texts=rows, tokens=tokens, mask=tokens != PAD, wanted=hidden)


def columns(known, *, images=3, features=None):
    if features is None:
        generator = torch.Generator().manual_seed(4)
        features = torch.randn(images, 5, dtype=torch.float64, generator=generator)
    whole = Embedding(whole=features, features=features)
    none = Keys.empty(images)
    return Columns(
        images=whole, image_keys=none, texts=None, text_keys=Keys.empty(0), text_counts=torch.zeros(0), captions=known
    )


def bag(loss="softmax"):
    torch.manual_seed(1)
    return Bag(BagSettings(loss=loss), features=5, words=WORDS).double()


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_is_the_oracles_in_value_and_every_gradient(loss):
    term, seen = bag(loss), columns(captions(ROWS, IMAGES))
    seen.images.features.requires_grad_()
    asked = [seen.images.features, term.head.weight, term.head.bias]
    ours = term(share(seen))
    scores = [list(row) for row in term.head(seen.images.features)[torch.tensor(IMAGES)]]
    wanted = ORACLES[loss](scores, SAID)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=0)
    for mine, right in zip(torch.autograd.grad(ours, asked), torch.autograd.grad(wanted, asked), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-14)


def test_the_order_of_words_and_how_often_they_stand_do_not_matter():
    term = bag()
    other = [[START, 7, 7, 5, 5, END], [START, 4, 4, 4, 4, END], [START, 10, 7, 3, 9, END]]
    first, second = (term(share(columns(captions(rows, IMAGES)))) for rows in (ROWS, other))
    torch.testing.assert_close(first, second, rtol=1e-13, atol=0)


def test_a_caption_of_marks_alone_and_an_image_without_one_teach_nothing():
    term = bag()
    whole = term(share(columns(captions(ROWS, IMAGES))))
    more = captions([*ROWS, [START, END, PAD, PAD, PAD, PAD]], [*IMAGES, 3])
    features = torch.cat([columns(None).images.features, torch.ones(2, 5, dtype=torch.float64)])
    torch.testing.assert_close(term(share(columns(more, images=5, features=features))), whole, rtol=1e-13, atol=0)
    nothing = term(share(columns(captions([[START, END]], [0]))))
    assert nothing.item() == 0


def test_a_hidden_word_is_one_of_the_words():
    tokens = torch.tensor(ROWS)
    wanted = torch.full_like(tokens, NOTHING)
    wanted[0, 2], tokens[0, 2] = 7, MASK
    hidden = replace(captions(ROWS, IMAGES), tokens=tokens, wanted=wanted)
    term = bag()
    assert torch.equal(term(share(columns(hidden))), term(share(columns(captions(ROWS, IMAGES)))))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_text_is_as_likely_as_the_mean_of_its_different_words(loss):
    term, seen = bag(loss), columns(None).images
    tokens = torch.tensor([*ROWS, [START, END, PAD, PAD, PAD, PAD]])
    found = term.log_likelihood(seen, tokens, tokens != PAD)
    for i, row in enumerate(term.head(seen.features)):
        chances = row.sigmoid() if loss == "sigmoid" else row.exp() / row.exp().sum()
        for t, words in enumerate(SAID):
            assert found[i, t].item() == pytest.approx(sum(chances[w].log().item() for w in words) / len(words))
    assert torch.isneginf(found[:, 3]).all()


def test_what_is_missing_is_said():
    with pytest.raises(UserError, match="'words' predicts captions; set data.captions to true"):
        bag()(share(columns(None)))
    with pytest.raises(UserError, match="say of which tokenizer with words"):
        Bag(BagSettings(), features=5, words=None)
