"""Sizes, end marks and tokenizers of text towers between our words and transformers'."""

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, CLIPTextConfig, RobertaConfig

from transformers_cases import CONTEXT, TEXTS, WORDS, bert_tokenizer, save_clip
from unicl.data.text import load_tokenizer, train_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers
from unicl.published import publish
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.towers.weights.checkpoint import open_checkpoint
from unicl.towers.weights.published import Published
from unicl.towers.weights.transformers_texts import (
    bert_text,
    clip_text,
    context_of,
    end_not_two,
    end_of_clip,
    text_config,
    text_refusal,
    tokenizer_of,
    words_of,
    write_words,
)

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


def published(text, *, vocab_size=64, tokenizer=None):
    return Published(
        origin="made", image=None, text=text, width=8, state={}, eos_id=7, vocab_size=vocab_size, tokenizer=tokenizer
    )


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (CLIPTextConfig(**WORDS | {"vocab_size": 64, "hidden_act": "gelu", "layer_norm_eps": 1e-3}), clip_text),
        (CLIPTextConfig(**WORDS | {"vocab_size": 64, "intermediate_size": 96}), clip_text),
        (BertConfig(**WORDS | {"vocab_size": 64, "type_vocab_size": 3, "hidden_act": "relu"}), bert_text),
    ],
)
def test_sizes_come_back_from_the_tower_that_is_built_of_them(config, settings):
    back = text_config(published(settings(config, tokenizer="clip")))
    assert type(back) is type(config)
    for name in (*SIZES, "hidden_act", "layer_norm_eps", "vocab_size"):
        assert getattr(back, name) == getattr(config, name)
    assert getattr(back, "type_vocab_size", None) == getattr(config, "type_vocab_size", None)
    assert back.eos_token_id == 7


def test_the_context_of_roberta_is_shorter_by_its_padding():
    assert context_of(BertConfig(max_position_embeddings=512)) == 512
    assert context_of(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512


def test_the_end_mark_of_clip_is_the_tokenizers(tmp_path):
    tokenizer = load_tokenizer("clip", context=77)
    assert end_of_clip(CLIPTextConfig(), tokenizer=tokenizer, place=tmp_path) == (49_407, ())
    end, notes = end_of_clip(CLIPTextConfig(eos_token_id=2), tokenizer=tokenizer, place=tmp_path)
    assert end == 49_407
    assert "highest id" in notes[0]
    with pytest.raises(UserError, match="at the id 5"):
        end_of_clip(CLIPTextConfig(eos_token_id=5), tokenizer=tokenizer, place=tmp_path)


def test_tokenizer_files_of_a_larger_vocabulary_are_refused(tmp_path):
    save_clip(tmp_path)
    found = open_checkpoint(tmp_path)
    _, tokenizer = tokenizer_of(found, vocab_size=1000, context=CONTEXT)
    with pytest.raises(UserError, match=f"has {tokenizer.vocab_size} entries, its text tower 20"):
        tokenizer_of(found, vocab_size=20, context=CONTEXT)


def test_an_end_mark_of_two_changes_places_with_the_last_entry_and_features_stay():
    words = train_tokenizer(TEXTS[:3], vocab_size=300, context=CONTEXT)
    text = TextSettings(layers=1, dim=16, heads=2, context=CONTEXT)
    model = TwoTowers(ModelSettings(image=ImageSettings(name="test_vit", size=32), text=text, width=8), tokenizer=words)
    before = publish(model.eval())
    after = end_not_two(before)
    last = words.vocab_size - 1
    assert (before.eos_id, after.eos_id, after.tokenizer.eos_id) == (2, last, last)
    (old, mask), (new, same) = words(list(TEXTS)), after.tokenizer(list(TEXTS))
    assert torch.equal(mask, same)
    turned = old.clone()
    turned[old == 2], turned[old == last] = last, 2
    assert torch.equal(new, turned)
    key = next(key for key in before.state if "token_embedding" in key)
    assert torch.equal(after.state[key][new], before.state[key][old])
    assert end_not_two(after).eos_id == last


def test_another_end_mark_is_left_alone():
    text = TextSettings(name="bert", layers=1, dim=16, heads=2, context=CONTEXT)
    words = train_tokenizer(TEXTS[:3], vocab_size=300, context=CONTEXT)
    model = replace(published(text, tokenizer=words), eos_id=2)
    assert end_not_two(model) == model  # BERT is read at its first token


def test_what_is_not_clips_text_tower_is_said():
    text = TextSettings(layers=1, dim=16, heads=2, context=CONTEXT)
    assert text_refusal(published(text)) is None
    assert "causal" in text_refusal(published(replace(text, name="bert")))
    assert "'mean'" in text_refusal(published(replace(text, pool="mean")))
    assert "end mark" in text_refusal(replace(published(text), eos_id=-1))


def test_words_are_written_with_the_class_that_holds_them(tmp_path):
    bert_tokenizer().save_pretrained(tmp_path / "a")
    text = TextSettings(name="bert", tokenizer=str(tmp_path / "a"), context=CONTEXT)
    model = published(text)
    assert words_of(model).name == "a"
    (tmp_path / "b").mkdir()
    files = write_words(tmp_path / "b", model=model)
    assert all(path.is_file() for path in files)
    from transformers import AutoTokenizer

    back = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert back(["a cat on the mat"])["input_ids"] == bert_tokenizer()(["a cat on the mat"])["input_ids"]
