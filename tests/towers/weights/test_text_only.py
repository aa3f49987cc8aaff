import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from checkpoint_cases import wrong_by_one
from original_towers import shake
from unicl.errors import UserError
from unicl.published import model_of
from unicl.towers.text import TextTower
from unicl.towers.weights import text_only
from unicl.towers.weights.checkpoint import open_checkpoint

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "red", "fruit", "dog", "small", "cat"]
TEXTS = ["a red fruit", "dog", "a small cat " * 30]
BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {"vocab_size": len(WORDS), "max_position_embeddings": 22, "pad_token_id": 1}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**BERT, **SIZES)),
    "bert with a language head": lambda: BertForMaskedLM(BertConfig(**BERT, **SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**BERT, **SIZES)),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(dim=32, hidden_dim=48, n_layers=2, n_heads=2, **SIZES)),
}


def folder_of(kind, folder):
    model = shake(MODELS[kind]())
    model.save_pretrained(folder)
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    inner.save(str(folder / "tokenizer.json"))
    return getattr(model, model.base_model_prefix, model)


def tower_of(published):
    tower = TextTower(
        published.text,
        width=published.width,
        vocab_size=published.vocab_size,
        eos_id=published.eos_id,
        pad_id=published.pad_id,
    )
    tower.load_state_dict({key.removeprefix("text."): value for key, value in published.state.items()})
    return tower.eval()


@pytest.mark.parametrize("kind", list(MODELS))
def test_features_are_those_of_transformers(kind, tmp_path):
    theirs = folder_of(kind, tmp_path)
    found = open_checkpoint(tmp_path)
    published = text_only.read(found)
    tokens, mask = published.tokenizer(TEXTS)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask.long()).last_hidden_state[:, 0]
        assert torch.allclose(tower_of(published).features(tokens, mask), expected, atol=1e-5)
    assert text_only.recognises(found)
    assert (published.image, published.width, published.text.tokenizer) == (None, 32, str(tmp_path))
    assert tokens.shape[1] == published.text.context == (20 if kind == "roberta" else 22)


def test_a_sentence_models_folder_says_how_it_pools(tmp_path):
    folder_of("bert", tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}), encoding="utf-8")
    assert text_only.read(open_checkpoint(tmp_path)).text.pool == "mean"


def test_heads_of_the_pretraining_are_left_out_and_said(tmp_path):
    folder_of("bert with a language head", tmp_path)
    assert any("cls.predictions" in note for note in text_only.read(open_checkpoint(tmp_path)).notes)


def test_a_text_tower_alone_is_no_model_of_pairs(tmp_path):
    folder_of("bert", tmp_path)
    with pytest.raises(UserError, match="holds a text tower alone"):
        model_of(text_only.read(open_checkpoint(tmp_path)))


def test_a_single_file_is_refused_because_it_says_too_little(tmp_path):
    folder_of("bert", tmp_path)
    with pytest.raises(UserError, match=r"needs its folder, with config\.json"):
        text_only.read(open_checkpoint(tmp_path / "model.safetensors"))


def test_one_renamed_missing_or_reshaped_entry_is_named(tmp_path):
    folder_of("bert", tmp_path)
    tried, wrong = wrong_by_one(open_checkpoint(tmp_path), text_only.read, spared=r"pooler\..*")
    assert tried > 13
    assert not wrong, wrong


def test_a_folder_of_files_that_do_not_belong_together_is_refused(tmp_path):
    folder_of("bert", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    table = "embeddings.word_embeddings.weight"
    save_file(state | {table: torch.zeros(12, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"{table} is \(12, 32\) there"):
        text_only.read(open_checkpoint(tmp_path))
