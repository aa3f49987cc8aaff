"""open_clip's text towers: its own transformer in all its ways, and transformers' in its frame."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, M2M100Config, MT5Config, RobertaConfig

from open_clip_models import TEXT, TEXTS, VISION, WIDTH, assert_same, build, clip_tokens, config_of, read
from unicl.data.text import Tokenizer, load_tokenizer, train_tokenizer
from unicl.errors import UserError
from unicl.published import model_of
from unicl.towers.weights.transformers_files import kind_of, write_tokenizer

VARIANTS: dict[str, dict[str, Any]] = {
    "argmax": {},
    "wider blocks, another eps and tanh": {
        "mlp_ratio": 3.7362,
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
    "two heads and the end mark": {"heads": 2, "pool_type": "eos", "eos_id": 49_407},
    "a projection with a bias": {"proj_bias": True},
    "both ways, last (SigLIP)": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "both ways, first": {"no_causal_mask": True, "pool_type": "first"},
    "both ways, argmax": {"no_causal_mask": True},
    "causal, last": {"pool_type": "last"},
    "no projection": {"proj_type": "none", "width": WIDTH, "heads": 2},
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def _save(folder: Path, model: nn.Module, config: dict[str, Any]) -> Path:
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "quick_gelu"),
    [(name, quick) for name in VARIANTS for quick in (False, True) if not (quick and "act_kwargs" in VARIANTS[name])],
)
def test_every_way_of_its_own_transformer_gives_its_numbers(name: str, quick_gelu: bool, tmp_path: Path) -> None:
    text = TEXT | VARIANTS[name]
    theirs = build(VISION, text, custom="both" in name, quick_gelu=quick_gelu)
    published = read(_save(tmp_path, theirs, config_of(VISION, text, quick_gelu=quick_gelu)))
    assert_same(model_of(published), theirs, tokens=clip_tokens())


@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
def test_a_tokenizer_in_the_folder_is_cleaned_as_open_clip_does(clean: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("chinese", context=12)
    write_tokenizer(tmp_path, tokenizer=tokenizer, kind=kind_of(tokenizer))
    text = TEXT | {
        "vocab_size": tokenizer.vocab_size,
        "hf_tokenizer_name": "elsewhere",
        "tokenizer_kwargs": {"clean": clean},
        "pool_type": "last",
        "no_causal_mask": True,
    }
    plain = {key: value for key, value in text.items() if key in TEXT or key in ("pool_type", "no_causal_mask")}
    theirs = build(VISION, plain, custom=True)
    model = model_of(read(_save(tmp_path, theirs, config_of(VISION, text))))
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(list(TEXTS))
    assert_same(model, theirs, tokens=tokens)


def _tokenizer(kind: str) -> Tokenizer:
    if kind in ("bert", "roberta"):
        return load_tokenizer("chinese", context=12)
    return train_tokenizer([text.lower() for text in TEXTS] * 3, vocab_size=400, context=12)


def _transformers_folder(folder: Path, kind: str) -> Tokenizer:
    tokenizer = _tokenizer(kind)
    size = tokenizer.vocab_size
    parts = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    layers = {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    configs: dict[str, Any] = {
        "bert": lambda: BertConfig(vocab_size=size, **SMALL),
        "roberta": lambda: RobertaConfig(vocab_size=size, pad_token_id=0, max_position_embeddings=20, **SMALL),
        "mt5": lambda: MT5Config(vocab_size=size, pad_token_id=0, **parts),
        "m2m_100": lambda: M2M100Config(
            vocab_size=size, pad_token_id=0, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, **layers
        ),
    }
    folder.mkdir()
    configs[kind]().save_pretrained(folder)
    write_tokenizer(folder, tokenizer=tokenizer, kind=kind_of(tokenizer))
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "pooler", "proj"),
    [
        ("bert", "mean_pooler", "mlp"),
        ("bert", "cls_pooler", "linear"),
        ("bert", "cls_last_hidden_state_pooler", "mlp"),
        ("roberta", "mean_pooler", "linear"),
        ("roberta", "cls_pooler", "linear"),
        ("mt5", "mean_pooler", "linear"),
        ("m2m_100", "cls_pooler", "linear"),
    ],
)
def test_text_models_of_transformers_give_open_clips_numbers(kind: str, pooler: str, proj: str, tmp_path: Path) -> None:
    _transformers_folder(tmp_path / "words", kind)
    text = {
        "hf_model_name": str(tmp_path / "words"),
        "hf_tokenizer_name": str(tmp_path / "words"),
        "hf_pooler_type": pooler,
        "hf_proj_type": proj,
        "context_length": 12,
    }
    theirs = build(VISION, text | {"hf_model_pretrained": False}, custom=True)
    model = model_of(read(_save(tmp_path, theirs, config_of(VISION, text))))
    tokens = open_clip.tokenizer.HFTokenizer(str(tmp_path / "words"), context_length=12)(list(TEXTS))
    assert_same(model, theirs, tokens=tokens)


def test_a_text_model_without_a_projection_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    BertConfig(vocab_size=21_128, **sizes).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_proj_type": None, "context_length": 12}
    theirs = build(VISION, text | {"hf_model_pretrained": False}, custom=True)
    model = model_of(read(_save(tmp_path, theirs, config_of(VISION, text))))
    tokens, _ = load_tokenizer("chinese", context=12)(TEXTS)
    assert_same(model, theirs, tokens=tokens)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"hf_pooler_type": "max_pooler"}, "max_pooler"),
        ({"hf_proj_type": "mlp", "hf_pooler_type": "cls_pooler"}, "cls_pooler with a linear projection"),
    ],
)
def test_poolers_without_a_counterpart_are_refused(more: dict[str, Any], reason: str, tmp_path: Path) -> None:
    _transformers_folder(tmp_path / "words", "bert")
    text = {"hf_model_name": str(tmp_path / "words"), "context_length": 12} | more
    theirs = build(VISION, text | {"hf_model_pretrained": False}, custom=True)
    with pytest.raises(UserError, match=reason):
        read(_save(tmp_path, theirs, config_of(VISION, text)))


def test_a_vocabulary_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    text = TEXT | {"vocab_size": 500}
    with pytest.raises(UserError, match="500 tokens"):
        read(_save(tmp_path, build(VISION, text), config_of(VISION, text)))
