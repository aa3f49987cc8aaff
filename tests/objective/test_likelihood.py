"""The likelihood of texts, token by token in float64."""

import pytest
import torch

from unicl.objective import likelihood
from unicl.objective.bag import Bag, BagSettings
from unicl.objective.classify import Classify, ClassifySettings, ClassName
from unicl.objective.likelihood import log_likelihoods, teller, writer
from unicl.objective.predict import Caption, CaptionSettings
from unicl.objective.words import Words
from unicl.space import Embedding, Parts

WORDS = Words(size=13, pad=0, start=1, end=2, mask=12, context=7)


def term(task="captioning"):
    torch.manual_seed(0)
    settings = CaptionSettings(task=task, width=16, heads=2, layers=2)
    made = Caption(settings, places=5, words=WORDS).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(1)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    values = torch.randn(3, 4, 5, dtype=torch.float64)
    whole = values.mean(1)
    return Embedding(whole=whole, features=whole, parts=Parts(values=values, mask=mask))


TEXTS = [[1, 5, 7, 7, 2], [1, 9, 2], [1, 4, 3, 11, 8, 6, 2], [1, 2]]


def padded():
    tokens = torch.zeros(len(TEXTS), max(map(len, TEXTS)), dtype=torch.int64)
    for row, text in zip(tokens, TEXTS, strict=True):
        row[: len(text)] = torch.tensor(text)
    return tokens, tokens != 0


@pytest.mark.parametrize("task", ["captioning", "bicaptioning"])
def test_a_caption_is_as_likely_as_its_tokens_one_after_another(task, images):
    made = term(task)
    tokens, mask = padded()
    found = log_likelihoods(made, images, tokens, mask=mask)
    assert found.dtype == torch.float64
    for i in range(3):
        places = images.parts.select([i])
        for t, text in enumerate(TEXTS):
            total = 0.0
            for end in range(1, len(text)):
                begun = torch.tensor([text[:end]])
                scores = made.decoder(begun, torch.ones_like(begun, dtype=torch.bool), places)[0, -1]
                total += (scores[text[end]].exp() / sum(score.exp() for score in scores)).log().item()
            assert found[i, t].item() == pytest.approx(total, rel=1e-10)


def test_how_many_pairs_are_looked_at_together_changes_nothing(images, monkeypatch):
    made = term()
    tokens, mask = padded()
    whole = log_likelihoods(made, images, tokens, mask=mask)
    for numbers in (1, 500):
        monkeypatch.setattr(likelihood, "NUMBERS", numbers)
        torch.testing.assert_close(log_likelihoods(made, images, tokens, mask=mask), whole, rtol=1e-12, atol=1e-12)


def test_terms_that_tell_are_found_and_only_those_that_read_forwards_write():
    labels = Classify(ClassifySettings(), features=4, classes=(ClassName(label="a", key=3),))
    bag, caption, masked = Bag(BagSettings(), features=4, words=WORDS), term(), term("masked")
    assert teller([labels, masked]) is None
    assert teller([labels, bag, caption]) is bag
    assert (writer([bag, masked]), writer([bag, caption])) == (None, caption)
