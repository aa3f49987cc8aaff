"""LiT, Chinese-CLIP and BertCLIP against transformers' and cn_clip's classes; what they learn is in test_recipes.py."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel, SiglipTextConfig, SiglipTextModel

from chinese_cases import TEXTS, official, official_features, official_file, pictures
from original_towers import shake
from recipes.test_pairs import at, loss_of, unit
from tiny import tiny
from transformers_cases import bert_tokenizer, loaded, save_dual
from transformers_cases import pictures as noise
from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.published import load
from unicl.recipes.locked import (
    BERT_CLIP,
    CHINESE_CLIP,
    LIT,
    LIT_TEXTS,
    LIT_TRAINED,
    Setting,
    bert_clip,
    chinese_clip,
    lit,
)
from unicl.towers.heads import make_head
from unicl.towers.text import TextTower, build_tokenizer

WORDS = ["a red square", "something blue", "green " * 30]


def text_tower(kind):
    """A small text tower as LiT has it, and its tokenizer."""
    settings = replace(LIT_TEXTS[kind], layers=2, dim=32, heads=4, vocab=400)
    tokenizer = build_tokenizer(settings, texts=WORDS)
    ids = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    return shake(TextTower(settings, width=16, **ids)).eval(), tokenizer


@pytest.mark.parametrize("setting", get_args(Setting))
def test_two_letters_say_what_is_locked_and_what_begins_at_random(setting):
    recipe = lit(setting=setting)
    for letter, tower in zip(setting, (recipe.image, recipe.text), strict=True):
        assert tower.locked is (letter == "L")
        assert (tower.weights == "random") is (letter == "u")


def test_locked_and_unlocked_towers_start_from_the_same_weights():
    (locked, unlocked), fresh = (lit(setting=s) for s in ("LL", "UU")), lit(setting="uu")
    assert replace(locked.image, locked=False) == unlocked.image
    assert replace(locked.text, locked=False) == unlocked.text
    assert replace(unlocked.image, weights="random") == fresh.image


def test_lit_has_no_head_for_pictures_and_one_dense_layer_for_texts():
    assert len(get_args(Setting)) == 9
    for towers in LIT:
        recipe = lit(towers=towers)
        assert (recipe.image.head, recipe.text.head, recipe.width) == ("none", "affine", None)
        assert recipe.image.frame.mode == "squash"
    assert lit().data.augment is None
    assert LIT.keys() == LIT_TRAINED.keys()


def test_lits_transformer_is_siglips_text_model_over_texts_filled_with_end_marks():
    tower, tokenizer = text_tower("siglip")
    tokens, mask = tokenizer(WORDS)
    assert tokens.shape == (3, 16)
    assert mask.all()
    assert (tokens[:, -1] == tokenizer.eos_id).all()
    config = SiglipTextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        projection_size=16,
        layer_norm_eps=1e-6,
    )
    theirs = SiglipTextModel(config).eval()
    head = {f"head.{name}": value for name, value in tower.head.state_dict().items()}
    missing = theirs.load_state_dict(
        {key.removeprefix("text_model."): v for key, v in (tower.backbone.state_dict() | head).items()}, strict=False
    )
    assert not missing.unexpected_keys, missing
    with torch.no_grad():
        expected = F.normalize(theirs(input_ids=tokens).pooler_output, dim=-1)
        assert float((tower(tokens, mask).whole - expected).abs().max()) < 1e-5


def test_lits_bert_is_bert_model_at_the_start_mark_of_texts_without_an_end_mark():
    tower, tokenizer = text_tower("bert")
    tokens, mask = tokenizer(WORDS)
    with_end = train_tokenizer(WORDS, vocab_size=400, context=16)
    assert with_end.eos_id not in tokens.tolist()[0]
    assert with_end(["a red square"])[0][0, :-1].tolist() == tokens[0, : int(mask[0].sum())].tolist()
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
    )
    theirs = BertModel(config, add_pooling_layer=False).eval()
    theirs.load_state_dict(tower.backbone.state_dict())
    with torch.no_grad():
        first = theirs(input_ids=tokens, attention_mask=mask).last_hidden_state[:, 0]
        expected = F.normalize(tower.head(first), dim=-1)
        assert float((tower(tokens, mask).whole - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_a_t5_reads_its_last_real_token_whatever_the_padding(kind):
    tower, tokenizer = text_tower(kind)
    tokens, mask = tokenizer(WORDS)
    states = tower.backbone(input_ids=tokens, attention_mask=mask).last_hidden_state
    last = states[torch.arange(3), mask.sum(1) - 1]
    expected = F.normalize(tower.head(last), dim=-1)
    assert torch.allclose(tower(tokens, mask).whole, expected, atol=1e-5)
    assert type(tower.backbone).__name__ == {"t5": "T5Stack", "mt5": "MT5Stack"}[kind]


def test_an_unknown_setting_or_text_and_weights_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="unknown setting 'lu'"):
        lit(setting="lu")
    with pytest.raises(UserError, match="unknown text 'gpt'; this recipe knows bert, siglip, t5, mt5"):
        lit(text="gpt")
    with pytest.raises(UserError, match="with u for texts"):
        lit(setting="LU", text="siglip")


def test_lits_loss_begins_at_a_multiplier_of_ten_and_is_the_mean_of_both_ways():
    images, texts = unit(6, seed=4), unit(6, seed=5)
    scores, own = 10 * images @ texts.T, torch.arange(6)
    wanted = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    assert float(loss_of(lit(), images, texts)[0].detach()) == pytest.approx(float(wanted), rel=1e-6)


def test_chinese_clips_features_and_loss_are_those_of_cn_clips_classes(tmp_path):
    original = official()
    model = load(official_file(original, tmp_path / "clip.pt"))
    images, texts = official_features(original, pictures(), TEXTS[:3])
    own = model.embed_image(pictures()), model.embed_text(list(TEXTS[:3]))
    assert max(float((a - b).abs().max()) for a, b in zip(own, (images, texts), strict=True)) < 1e-5
    scale = float(original.logit_scale.detach().exp().clamp(1, 100))
    scores, place = scale * images @ texts.T, torch.arange(3)
    wanted = (F.cross_entropy(scores, place) + F.cross_entropy(scores.T, place)) / 2
    ours, _ = loss_of(at(chinese_clip(), scale=scale), *own)
    assert float(ours.detach()) == pytest.approx(float(wanted), rel=1e-4)
    assert (model.settings.text.context, model.settings.text.pool) == (52, chinese_clip().text.pool)
    assert model.settings.image.frame == chinese_clip().image.frame


def test_chinese_clip_keeps_its_scale_between_one_and_a_hundred_after_each_step():
    for towers in CHINESE_CLIP:
        recipe = chinese_clip(towers=towers)
        _, objective = loss_of(recipe, unit(2, seed=0), unit(2, seed=1))
        scale = objective.terms["instances"].scale
        for value, end in ((9.0, 100.0), (-1.0, 1.0)):
            with torch.no_grad():
                scale.log_scale.fill_(value)
            objective.clamp()
            assert scale.value == pytest.approx(end, rel=1e-6)


def test_chinese_clip_locks_pictures_with_their_projection_first_and_slows_down_for_both():
    for towers, size in CHINESE_CLIP.items():
        first, second, *_ = chinese_clip(towers=towers).stages
        assert first.image.part == ("head" if towers == "laptop" else "none")
        assert first.plateau is not None
        assert (second.image, second.rate) == (None, 0.2)
        assert size.stages[0] == first
    assert chinese_clip(towers="l14_336").stages[-1].size == 336
    assert {stage.batch for stage in chinese_clip(towers="b16", batch=64).stages} == {None}


def test_bert_clips_features_and_loss_are_those_of_transformers_dual_model(tmp_path):
    vision, text = {"model_type": "clip_vision_model"}, {"model_type": "bert", "hidden_act": "gelu"}
    original = save_dual(tmp_path, vision=vision, text=text, words=bert_tokenizer()).eval()
    model, (_, processor) = load(tmp_path), loaded(tmp_path)
    words = ["a cat", "the dog", "a mat on the cat"]
    inputs = processor(images=noise(), text=words, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = original(**inputs, return_loss=True)
    own = model.embed_image(noise()), model.embed_text(words)
    for ours, theirs in zip(own, (output.image_embeds, output.text_embeds), strict=True):
        assert float((ours - F.normalize(theirs, dim=-1)).abs().max()) < 1e-5
    recipe = at(bert_clip(), scale=float(original.logit_scale.detach().exp()))
    assert float(loss_of(recipe, *own)[0].detach()) == pytest.approx(float(output.loss), rel=1e-4)
    assert model.settings.text.head == recipe.text.head == "pooler"


def test_bert_clip_locks_what_comes_before_its_projection_and_lets_its_scale_run():
    for towers in BERT_CLIP:
        recipe = bert_clip(towers=towers)
        assert recipe.image.locked
        assert recipe.terms[0].scale.max is None
        assert recipe.text.context == 100
    head = make_head("pooler", features=8, width=4)
    assert [type(part).__name__ for part in head] == ["Linear", "Tanh", "Linear"]


def test_recipes_are_small_enough_to_be_tested():
    assert tiny("chinese_clip", steps=20).stages[0].steps == 10
