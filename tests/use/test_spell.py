"""Texts through tokens and back."""

import pytest

from unicl.data.text import load_tokenizer, train_tokenizer
from unicl.use.spell import spelled

TEXTS = ["a red square, it's number 4! (really)", "café 😀 q", "红色的苹果 and 蓝。好", ""]


def there_and_back(tokenizer, texts):
    return spelled(tokenizer, [tokenizer([text])[0][0].tolist()[1:-1] for text in texts])


def test_a_trained_tokenizer_keeps_every_text_bytes_included():
    made = train_tokenizer(["a red square", "红色的苹果"], vocab_size=400, context=60)
    assert there_and_back(made, TEXTS) == TEXTS


def test_clips_entries_are_bytes():
    assert there_and_back(load_tokenizer("clip", context=60), TEXTS) == TEXTS


def test_the_chinese_berts_keep_words_without_blanks_among_chinese_characters():
    found = there_and_back(load_tokenizer("chinese", context=60), ["a red square, number 7!", "红色的苹果 and 蓝。好"])
    assert found == ["a red square, number 7!", "红色的苹果 and 蓝。好"]


@pytest.mark.parametrize("tokens", [[], [10_000_000]])
def test_tokens_that_there_are_not_say_nothing(tokens):
    assert spelled(train_tokenizer(["a"], vocab_size=300, context=8), [tokens]) == [""]
