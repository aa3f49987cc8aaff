"""BLEU and CIDEr of small examples whose numbers are made by hand."""

import math
import random
import sys

import pytest

from evaluate_oracles import bleu, cider_d
from unicl.errors import UserError
from unicl.evaluate.wording import wording_scores, words_of


def test_words_are_runs_of_letters_without_punctuation_and_chinese_characters():
    assert words_of("A dog's ball, over-the-top (No. 7)!") == ["a", "dog's", "ball", "over", "the", "top", "no", "7"]
    assert words_of("红色的 apple。") == ["红", "色", "的", "apple"]
    assert words_of("Café “éclair”") == ["café", "éclair"]
    assert words_of("...") == []


def test_where_our_words_are_not_those_of_the_tokenizer_of_cocos_numbers():
    """It parts "it 's" and "ca n't", and keeps over-the-top, 3:30, p.m. and 1,000 whole."""
    assert words_of("it's what they can't") == ["it's", "what", "they", "can't"]
    assert words_of("over-the-top at 3:30 p.m.") == ["over", "the", "top", "at", "3", "30", "p", "m"]
    assert words_of("1,000 at 50% for $5") == ["1", "000", "at", "50", "for", "5"]


def test_the_numbers_are_those_of_plain_loops():
    rng = random.Random(0)
    words = ["a", "red", "blue", "square", "circle", "on", "the", "table", "near", "lake"]
    references = [[rng.choices(words, k=rng.randint(4, 9)) for _ in range(rng.randint(1, 3))] for _ in range(12)]
    captions = [rng.choices(rng.choice(several), k=rng.randint(4, 8)) for several in references]
    found = wording_scores([" ".join(c) for c in captions], [[" ".join(t) for t in several] for several in references])
    for order in (1, 2, 3):
        assert found[f"BLEU-{order}"] == pytest.approx(bleu(captions, references, order=order), rel=1e-6)
    assert found["CIDEr"] == pytest.approx(cider_d(captions, references), rel=1e-9)
    assert 0.1 < found["BLEU-2"] < 0.9
    assert 0.1 < found["CIDEr"] < 9


def test_bleu_counts_what_the_references_have_and_punishes_brevity():
    # Papineni et al. 2002, section 2.1: 7 words "the", of which a reference has at most 2.
    first = wording_scores(["the the the the the the the"], [["The cat is on the mat.", "There is a cat on the mat."]])
    assert first["BLEU-1"] == pytest.approx(2 / 7)
    assert first["BLEU-2"] == pytest.approx(0, abs=1e-6)
    # 3 words of 4: precision 1, and e^(1 - 4/3) for being short.
    short = wording_scores(["a red square"], [["A red square here"]])
    assert [short[f"BLEU-{n}"] for n in (1, 2, 3)] == pytest.approx([math.exp(1 - 4 / 3)] * 3)


def test_cider_is_ten_for_the_references_themselves_and_nothing_for_one_picture():
    texts = ["a red square on a table", "two green circles beside a lake", "one blue dog near the old house"]
    same = wording_scores(texts, [[text] for text in texts])
    assert same["CIDEr"] == pytest.approx(10)
    assert same["BLEU-4"] == pytest.approx(1)
    assert wording_scores(texts[:1], [texts[:1]])["CIDEr"] == 0


def test_cider_weighs_words_by_how_few_pictures_have_them():
    """Of two pictures and one reference each, only "red" and "blue" weigh anything: log(2 / 1)."""
    found = wording_scores(["red one", "blue two"], [["red three"], ["blue four"]])
    # One word of two alike, of vectors of two equal entries: cosine 1/2; no pair of words alike.
    assert found["CIDEr"] == pytest.approx(10 * (0.5 + 0 + 0 + 0) / 4)


def test_there_must_be_captions_and_references(monkeypatch):
    for captions, references in ([], []), (["a"], [[]]):
        with pytest.raises(UserError, match="at least one"):
            wording_scores(captions, references)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(UserError, match=r"unicl\[captions\]"):
        wording_scores(["a"], [["a"]])
