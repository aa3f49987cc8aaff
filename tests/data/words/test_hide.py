import math
from collections import Counter

import numpy as np
import pytest
import torch

from unicl.data.words.hide import HideWords
from unicl.space import NOTHING

MARKS = (0, 1, 2, 29)
HIDE = HideWords(size=30, mask=29, marks=MARKS)


def text(words, *, pads=3):
    return torch.tensor([1, *range(3, 3 + words), 2] + [0] * pads)


def hidden(words, *, seed, hide=HIDE):
    tokens = text(words)
    shown, wanted = hide("", tokens, rng=np.random.default_rng(seed))
    return tokens, shown, wanted


@pytest.mark.parametrize("words", [1, 2, 6, 7, 13, 20])
def test_so_many_words_are_touched_and_never_a_mark(words):
    number = math.ceil(0.15 * words)
    for seed in range(40):
        tokens, shown, wanted = hidden(words, seed=seed)
        asked = wanted != NOTHING
        assert torch.equal(wanted[asked], tokens[asked])
        assert (shown[asked] == 29).all()
        assert torch.equal(shown == 29, asked)
        changed = (shown != tokens) | asked
        assert int(changed.sum()) <= number
        assert not changed[torch.isin(tokens, torch.tensor(MARKS))].any()
        assert not torch.isin(shown[changed & ~asked], torch.tensor(MARKS)).any()
        if number == 1:
            assert int(asked.sum()) == 1


def test_shares_of_masked_replaced_and_kept_words_are_those_asked_for():
    kinds = Counter()
    hide = HideWords(size=10_000, mask=29, marks=MARKS)
    for seed in range(1500):
        tokens, shown, wanted = hidden(20, seed=seed, hide=hide)
        kinds["masked"] += int((wanted != NOTHING).sum())
        kinds["replaced"] += int(((shown != tokens) & (wanted == NOTHING)).sum())
    every = 1500 * 3
    assert kinds["masked"] / every == pytest.approx(0.85, abs=0.02)
    assert kinds["replaced"] / every == pytest.approx(0.10, abs=0.02)


def test_a_word_that_takes_the_place_of_another_is_any_but_a_mark():
    rng = np.random.default_rng(0)
    assert {HIDE._other(rng) for _ in range(2000)} == set(range(30)) - set(MARKS)


def test_equal_draws_hide_the_same_and_a_text_without_words_stays():
    first, second = hidden(20, seed=3), hidden(20, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    tokens, shown, wanted = hidden(0, seed=1)
    assert torch.equal(tokens, shown)
    assert (wanted == NOTHING).all()
