"""A bag of words as a text tower."""

import pytest
import torch
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.towers.text import TextSettings, TextTower, build_tokenizer

SETTINGS = TextSettings(name="bag", layers=3, dim=32, heads=2, context=60, vocab=320)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(SETTINGS, texts=["a red square on a green square", "a blue circle"])


def tower(tokenizer, **more):
    torch.manual_seed(0)
    made = TextTower(
        SETTINGS, width=8, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, **more
    )
    return made.double().eval()


def test_the_order_of_words_does_not_change_the_vector_and_another_word_does(tokenizer):
    texts = ["a red square on a green square", "square green a on square red a", "a red square on a green circle"]
    first, second, third = tower(tokenizer)(*tokenizer(texts)).whole
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)
    assert F.cosine_similarity(first, third, dim=0) < 0.999


def test_the_vector_is_the_mean_of_the_embeddings_whatever_stands_behind(tokenizer):
    bag = tower(tokenizer)
    tokens, mask = tokenizer(["a red square", "a blue circle on a red square"])
    table = bag.backbone.embeddings.word_embeddings.weight
    for row, real, found in zip(tokens, mask, bag.features(tokens, mask), strict=True):
        torch.testing.assert_close(found, table[row[real]].mean(0), rtol=1e-12, atol=1e-14)


def test_there_is_a_table_and_a_head_and_nothing_else_whatever_layers_are_asked_for(tokenizer):
    names = dict(tower(tokenizer).named_parameters())
    assert {n: tuple(p.shape) for n, p in names.items()} == {
        "backbone.embeddings.word_embeddings.weight": (tokenizer.vocab_size, 32),
        "head.weight": (8, 32),
    }


def test_a_bag_has_no_matrix_for_adapters():
    with pytest.raises(UserError, match="no plain matrix"):
        TextTower(
            TextSettings(name="bag", dim=32, heads=2, context=12, lora=2), width=8, vocab_size=300, eos_id=2, pad_id=0
        )
