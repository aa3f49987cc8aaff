"""Texts before their tokens: as CLIP, BERT and SigLIP clean them in their own code."""

import unicodedata

import pytest
from cn_clip.clip.bert_tokenizer import BasicTokenizer
from open_clip.tokenizer import _clean_canonicalize, _clean_lower, _clean_whitespace

from strange_texts import strange_texts
from unicl.data.clean import prepare


@pytest.mark.parametrize(
    ("cleaning", "theirs"),
    [("mend", _clean_whitespace), ("lower", _clean_lower), ("canonical", _clean_canonicalize)],
)
def test_strange_texts_are_cleaned_as_open_clip_cleans_them(cleaning, theirs):
    assert [text for text in strange_texts(3000) if prepare(text, cleaning) != theirs(text)] == []


def test_bert_keeps_and_lowers_the_letters_that_its_own_code_keeps():
    theirs = BasicTokenizer()

    def letters(text):
        parted = unicodedata.normalize("NFD", prepare(text, "bert"))
        return "".join(letter for letter in "".join(parted.split()) if unicodedata.category(letter) != "Mn")

    def known(text):
        return "\ue000" not in text and not any(0xD800 <= ord(letter) < 0xE000 for letter in text)

    texts = [text for text in strange_texts(3000) if known(text) and not text.isascii()]
    assert len(texts) > 2000
    assert [text for text in texts if letters(text) != "".join(theirs.tokenize(text))] == []


@pytest.mark.parametrize(
    ("text", "cleaning", "wanted"),
    [
        ("half \ud83d of a pair", "none", "half \ufffd of a pair"),
        ("a pair \ud83d\ude00", "none", "a pair 😀"),
        ("half \ud83d", "mend", "half \ufffd"),
        ("half \ud83d", "bare", "half \ufffd"),
        ("half \ud83d", "bert", "half \ua000"),
        ("great White_shark!", "canonical", "great white shark"),
        ("great White_shark!", "bare", "great whiteshark"),
        ("I &amp;amp; you", "bare", "i ampamp you"),
        ("I &amp;amp; you", "canonical", "i you"),
        ("Ａ ﬁ ①", "fold", "a fi 1"),
        ("ΟΔΟΣ", "bert", "οδος"),
        ("a中b\u200c\xa0c", "bert", "a 中 b c"),
        ("As It Is &amp;", "none", "As It Is &amp;"),
    ],
)
def test_each_cleaning_does_what_its_name_says(text, cleaning, wanted):
    assert prepare(text, cleaning) == wanted
