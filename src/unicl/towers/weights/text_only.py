"""A text tower alone: any text model in transformers' folder form (BERT, RoBERTa, MiniLM and others)."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch

from unicl.errors import UserError
from unicl.towers.text import TextSettings, TextTower
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import mismatch, shapes_differ
from unicl.towers.weights.published import Published
from unicl.towers.weights.transformers_texts import tokenizer_of

NAME: Final = "text tower alone (transformers folder)"
CONTEXT: Final = 512
"""Tokens at most, if the model itself says nothing or knows more."""

_WORDS: Final = r"(.*\.)?(word_embeddings|tok_embeddings|embed_tokens|token_embedding|wte|shared)\.weight"
_IMAGES: Final = r"(.*\.)?(patch_embed|patch_embeddings|patch_embedding|vision_model|visual|conv1)\."
_HEADS: Final = (
    r"(cls|lm_head|mlm|vocab_\w+|classifier|qa_outputs|predictions)\..*|pooler\..*|.*\.position_ids|.*\.token_type_ids"
)
_POOLING: Final = Path("1_Pooling/config.json")


def recognises(found: Checkpoint) -> bool:
    """Whether a folder's config.json names a model that has words and no pictures."""
    named = found.folder is not None and "model_type" in found.config
    return named and found.any(_WORDS) and not found.any(_IMAGES)


def read(found: Checkpoint) -> Published:
    """The model without its head, pooled as its folder says; transformers itself puts the tensors in their places.

    Raises `UserError` naming what is missing, left over or of another shape, or if there is no tokenizer.
    """
    folder = found.folder
    if folder is None:
        raise UserError(f"{found.place} is a single file; a text model needs its folder, with config.json")
    config = _config(folder)
    context = _context(config)
    name, tokenizer = tokenizer_of(found, vocab_size=config.vocab_size, context=context)
    pad_id = tokenizer.pad_id if config.pad_token_id is None else int(config.pad_token_id)
    settings = TextSettings(
        name=str(folder),
        tokenizer=name,
        context=context,
        pool=_pool(folder),
        head="none",
        options={"pad_token_id": pad_id, "vocab_size": config.vocab_size},
    )
    with torch.device("meta"):
        tower = TextTower(
            settings,
            width=config.hidden_size,
            vocab_size=config.vocab_size,
            eos_id=tokenizer.eos_id,
            pad_id=pad_id,
        )
    backbone, notes = _filled(tower.backbone, found)
    return Published(
        origin=f"text tower alone ({config.model_type})",
        source=str(found.place),
        image=None,
        text=settings,
        width=tower.feature_width,
        state={f"text.backbone.{key}": value for key, value in backbone.items()},
        eos_id=tokenizer.eos_id,
        pad_id=pad_id,
        vocab_size=config.vocab_size,
        tokenizer=tokenizer,
        notes=notes,
    )


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}/config.json is of no model that transformers knows: {error}") from error


def _context(config: Any) -> int:
    # RoBERTa counts positions from its padding id on.
    reserved = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    places = getattr(config, "max_position_embeddings", None) or CONTEXT
    return min(int(places) - reserved, CONTEXT)


def _pool(folder: Path) -> Literal["default", "mean", "max", "cls"]:
    """What sentence-transformers wrote beside the model; else what the model was made for."""
    try:
        content = json.loads((folder / _POOLING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "default"
    if content.get("pooling_mode_mean_tokens"):
        return "mean"
    if content.get("pooling_mode_max_tokens"):
        return "max"
    return "cls" if content.get("pooling_mode_cls_token") else "default"


def _filled(backbone: Any, found: Checkpoint) -> tuple[Mapping[str, torch.Tensor], tuple[str, ...]]:
    """The tensors under transformers' names of today, and a note about what was left out."""
    try:
        model, report = type(backbone).from_pretrained(
            None,
            config=backbone.config,
            state_dict=dict(found.state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{found.place} cannot be read by transformers: {str(error).splitlines()[0]}") from error
    for name, theirs, ours in sorted(report["mismatched_keys"]):
        raise UserError(shapes_differ(str(found.place), name, theirs=theirs, ours=ours))
    left, heads = _parted(report["unexpected_keys"])
    missing = _parted(report["missing_keys"])[0]
    if missing or left:
        raise UserError(mismatch(str(found.place), missing=missing, left=left))
    own = {key: value for key, value in model.state_dict().items() if key in backbone.state_dict()}
    some = f"{', '.join(heads[:3])}{', ...' if len(heads) > 3 else ''}"
    return own, (f"left out {len(heads)} ({some}): heads of the pretraining",) if heads else ()


def _parted(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Entries of the model, and those of heads that it does without."""
    heads = sorted(name for name in names if re.fullmatch(_HEADS, name))
    return sorted(set(names) - set(heads)), heads
