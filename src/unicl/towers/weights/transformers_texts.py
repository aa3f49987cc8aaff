"""The text towers of transformers' dual models, in our words and back: names of tensors, sizes, and tokenizers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
import torch

from unicl.data.text import Tokenizer, load_tokenizer
from unicl.errors import UserError
from unicl.towers.heads import HeadKind, Option, Pool
from unicl.towers.text import TextSettings, TextTower, build_tokenizer
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Rules
from unicl.towers.weights.published import Published
from unicl.towers.weights.transformers_files import find_tokenizer, kind_of, write_tokenizer


def clip_text_rules(place: str = "text_model") -> Rules:
    """CLIPTextModel's names below ``place``."""
    return (
        Rule(r"text\.backbone\.(?:text_model\.)?(.+)", rf"{place}.\1"),
        Rule(r"text\.head\.weight", "text_projection.weight"),
    )


def pooler_text_rules(place: str = "text_model") -> Rules:
    """The names of BertModel, and of models that end like it, below ``place``."""
    return (
        Rule(r"text\.backbone\.(.+)", rf"{place}.\1"),
        Rule(r"text\.head\.0\.(\w+)", rf"{place}.pooler.dense.\1"),
        Rule(r"text\.head\.2\.weight", "text_projection.weight"),
    )


def text_of(text: Any, *, name: str, tokenizer: str, pool: Pool, act: str) -> TextSettings:
    """The text tower of any configuration of transformers with CLIP's names of sizes, read at ``pool``."""
    return TextSettings(
        name=name,
        tokenizer=tokenizer,
        layers=text.num_hidden_layers,
        dim=text.hidden_size,
        heads=text.num_attention_heads,
        context=text.max_position_embeddings,
        vocab=text.vocab_size,
        eps=text.layer_norm_eps,
        pool=pool,
        options=text_options(text, act=act),
    )


def clip_text(text: Any, *, tokenizer: str) -> TextSettings:
    """The text tower of a CLIPTextConfig."""
    return text_of(text, name="clip", tokenizer=tokenizer, pool="eos", act="quick_gelu")


def bert_text(text: Any, *, tokenizer: str, head: HeadKind = "pooler") -> TextSettings:
    """The text tower of a BertConfig."""
    types = {} if text.type_vocab_size == 2 else {"type_vocab_size": text.type_vocab_size}
    plain = text_of(text, name="bert", tokenizer=tokenizer, pool="cls", act="gelu")
    return replace(plain, head=head, options={**plain.options, **types})


def folder_text(text: Any, *, folder: Path, tokenizer: str) -> TextSettings:
    """The text tower of any other configuration that ends on BERT's pooler; ``folder`` holds it."""
    return TextSettings(
        name=str(folder),
        tokenizer=tokenizer,
        context=context_of(text),
        vocab=text.vocab_size,
        pool="cls",
        head="pooler",
        options={"pad_token_id": text.pad_token_id},
    )


def context_of(text: Any) -> int:
    """The longest text of a configuration, in tokens."""
    # RoBERTa, and the models made of it, count positions from their padding id on.
    reserved = text.pad_token_id + 1 if text.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return int(text.max_position_embeddings) - reserved


def text_options(text: Any, *, act: str) -> dict[str, Option]:
    """What of a text configuration our settings have no field for and is not their default."""
    options: dict[str, Option] = {}
    if text.hidden_act != act:
        options["hidden_act"] = text.hidden_act
    if text.intermediate_size != 4 * text.hidden_size:
        options["intermediate_size"] = text.intermediate_size
    return options


def text_config(model: Published) -> Any:
    """transformers' configuration of a model's text tower, with the ids of its end and padding."""
    if model.text is None:
        raise UserError(f"{model.origin} has no text tower")
    with torch.device("meta"):
        tower = TextTower(
            model.text, width=model.width, vocab_size=model.vocab_size, eos_id=model.eos_id, pad_id=model.pad_id
        )
    config = tower.backbone.config
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, max(model.eos_id, 0), model.pad_id
    return config


def tokenizer_of(found: Checkpoint, *, vocab_size: int, context: int, fixed: bool = False) -> tuple[str, Tokenizer]:
    """The name for `TextSettings.tokenizer`, and the tokenizer; it has at most as many entries as the text tower."""
    name = find_tokenizer(found.folder, vocab_size=vocab_size)
    tokenizer = load_tokenizer(name, context=context, fixed=fixed)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer of {found.place} has {tokenizer.vocab_size} entries, its text tower {vocab_size}; "
            "the tokenizer files belong to another model"
        )
    return name, tokenizer


def end_of_clip(text: Any, *, tokenizer: Tokenizer, place: Path) -> tuple[int, tuple[str, ...]]:
    """The end mark at which a CLIP text tower reads a text, and a note for people.

    Configurations of older versions say 2, and transformers then reads at the first highest id; that is the end mark
    in every text without an entry above it. Raises `UserError` if the tokenizer ends texts with another mark.
    """
    said = text.eos_token_id
    if said == 2:
        note = (
            f"texts are read at their end mark, id {tokenizer.eos_id}; its configuration says eos_token_id 2, for "
            "which transformers reads the highest id of a text: the same place if no id of a text is above the end mark"
        )
        return tokenizer.eos_id, (note,)
    if said != tokenizer.eos_id:
        raise UserError(
            f"{place} reads a text at the id {said} (eos_token_id), but its tokenizer ends texts with "
            f"{tokenizer.eos_id}; one of config.json and the tokenizer files is wrong"
        )
    return said, ()


def text_refusal(model: Published) -> str | None:
    """Why a text tower is not CLIP's transformer read at its end mark, or None."""
    if model.text is None or text_config(model).model_type != "clip_text_model":
        return "the text tower is not CLIP's causal transformer"
    if model.text.pool not in ("default", "eos"):
        return f"CLIP's text tower is read at the end mark, and this one by {model.text.pool!r}"
    return None if model.eos_id >= 0 else "the tokenizer has no end mark, at which CLIP's text tower is read"


def end_not_two(model: Published) -> Published:
    """The same model with another id for an end mark of id 2, which transformers' CLIPTextModel takes for an old file.

    It then reads each text at its highest id, so the end mark changes places with the last entry: in the tokenizer
    and in the table of token embeddings.
    """
    tokenizer = words_of(model)
    if model.eos_id != 2 or text_config(model).model_type != "clip_text_model":
        return replace(model, tokenizer=tokenizer)
    last = tokenizer.vocab_size - 1
    key = next(key for key in model.state if key.endswith("token_embedding.weight"))
    table = model.state[key].clone()
    table[[2, last]] = table[[last, 2]]
    return replace(model, eos_id=last, state={**model.state, key: table}, tokenizer=_moved(tokenizer, old=2, new=last))


def words_of(model: Published) -> Tokenizer:
    """The tokenizer at hand, or the one that the settings name."""
    if model.tokenizer is not None:
        return model.tokenizer
    if model.text is None:
        raise UserError(f"{model.origin} has no text tower")
    return build_tokenizer(model.text)


def write_words(folder: Path, *, model: Published) -> tuple[Path, ...]:
    """Write the tokenizer's files."""
    tokenizer = words_of(model)
    return write_tokenizer(folder, tokenizer=tokenizer, kind=kind_of(tokenizer))


def _moved(tokenizer: Tokenizer, *, old: int, new: int) -> Tokenizer:
    """The tokenizer with the entries of two ids, of which the first is the end mark, exchanged."""
    content = json.loads(tokenizer.inner.to_str())
    turned = {old: new, new: old}
    model = content["model"]
    model["vocab"] = {entry: turned.get(id, id) for entry, id in model["vocab"].items()}
    for entry in content["added_tokens"]:
        entry["id"] = turned.get(entry["id"], entry["id"])
    for mark in content["post_processor"]["special_tokens"].values():
        mark["ids"] = [turned.get(id, id) for id in mark["ids"]]
    return Tokenizer(
        tokenizers.Tokenizer.from_str(json.dumps(content)),
        name=tokenizer.name,
        context=tokenizer.context,
        eos_id=new,
        pad_id=tokenizer.pad_id,
        cleaning=tokenizer.cleaning,
        fixed=tokenizer.fixed,
    )
