"""The text towers of open_clip: its own transformer, and any of transformers' in its frame."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from unicl.data.text import Tokenizer, load_tokenizer
from unicl.errors import UserError
from unicl.towers.heads import HeadKind
from unicl.towers.text import TextSettings, read_config
from unicl.towers.weights import openai
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Rules
from unicl.towers.weights.native import EPS, Act, words_settings
from unicl.towers.weights.transformers_files import TOKENIZER_FILES, find_tokenizer

_KNOWN: Final = (
    "context_length vocab_size hf_tokenizer_name tokenizer_kwargs width heads layers mlp_ratio pad_id eos_id "
    "no_causal_mask pool_type proj_bias proj_type act_kwargs norm_kwargs final_ln_after_pool output_tokens "
    "hf_model_name hf_model_pretrained hf_proj_type hf_pooler_type"
)
_CLEANINGS: Final = (("whitespace", "mend"), ("lower", "lower"), ("canonicalize", "canonical"))
POOLERS: Final = (
    ("mean_pooler", "mean"),
    ("cls_pooler", "cls"),
    ("cls_last_hidden_state_pooler", "cls"),
)
"""hf_pooler_type, and `TextSettings.pool`."""
_FIRST: Final = ("bert", "m2m_100")
"""Models of transformers that open_clip reads at the first token if it is not told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """A text tower as read: how it is built, where its tensors are, and a tokenizer that needs more than a name."""

    settings: TextSettings
    rules: Rules
    tokenizer: Tokenizer | None
    vocab_size: int
    eos_id: int
    pad_id: int


def read_texts(found: Checkpoint, config: Mapping[str, Any], *, act: Act) -> Texts:
    """The text tower of a checkpoint; raises `UserError` for a field of the configuration that is not known here."""
    if "multimodal_cfg" in config:
        raise UserError(f"{found.place} is a CoCa, which has a third part that writes captions; it cannot be read")
    text = config.get("text_cfg", {})
    check_fields(text, known=_KNOWN, what=f"the text tower in {found.place}")
    return _transformers(found, text) if text.get("hf_model_name") else _native(found, text, act=act)


def check_fields(section: Mapping[str, Any], *, known: str, what: str) -> None:
    """Raise `UserError` naming the fields that are set and change what a tower computes in ways not known here."""
    plain = {"block_type": "default"}
    odd = [key for key, value in section.items() if value and value != plain.get(key) and key not in known.split()]
    if odd:
        fields = ", ".join(f"{key}: {section[key]}" for key in odd)
        raise UserError(f"{what} cannot be built: its configuration sets {fields}, which is not known here")


def tower_rules(state: Mapping[str, Tensor]) -> Rules:
    """Rules from a tower that the user named to the text tower of a state dict."""
    if any(key.startswith("text.transformer.") and ".resblocks." not in key for key in state):
        head: HeadKind = "gelu_half" if "text.proj.0.weight" in state else "linear"
        pooled = any(key.startswith("text.transformer.pooler.") for key in state)
        return transformers_rules("pooler" if pooled else head)
    prefix = "text." if any(key.startswith("text.") for key in state) else ""
    return native_rules(prefix, head="affine" if f"{prefix}text_projection.weight" in state else "linear")


def native_rules(prefix: str, *, head: HeadKind) -> Rules:
    """Rules of open_clip's own text transformer."""
    rules = openai.text_rules(prefix)
    biased = Rule(r"text\.head\.(weight|bias)", rf"{prefix}text_projection.\1")
    return (*rules[:-1], biased) if head == "affine" else rules


def transformers_rules(head: HeadKind) -> Rules:
    """Rules of a text tower of transformers'."""
    heads: dict[str, Rules] = {
        "linear": (Rule(r"text\.head\.weight", "text.proj.weight"),),
        "gelu_half": (Rule(r"text\.head\.([02])\.weight", r"text.proj.\1.weight"),),
        "pooler": (
            Rule(r"text\.head\.0\.(weight|bias)", r"text.transformer.pooler.dense.\1"),
            Rule(r"text\.head\.2\.weight", "text.proj.weight"),
        ),
    }
    return (Rule(r"text\.backbone\.(.+)", r"text.transformer.\1"), *heads.get(head, ()))


def _native(found: Checkpoint, text: Mapping[str, Any], *, act: Act) -> Texts:
    prefix = "text." if found.any(r"text\.") else ""
    plain = openai.read_words(found, prefix=prefix, act=act)
    pool = text.get("pool_type", "argmax")
    if pool not in ("argmax", "eos", "last", "first") or text.get("ls_init_value") is not None:
        raise UserError(f"{found.place} pools texts by {pool!r} or scales branches, which no text tower here does")
    head: HeadKind = "none" if text.get("proj_type") == "none" else "affine" if text.get("proj_bias") else "linear"
    words = replace(
        plain,
        heads=int(text.get("heads", plain.heads)),
        eps=(text.get("norm_kwargs") or {}).get("eps", EPS),
        causal=not text.get("no_causal_mask"),
        pool=pool,
        head=head,
    )
    fixed = not words.causal or pool == "last"
    name, tokenizer = _tokenizer(found, text, vocab_size=words.vocab_size, context=words.context, fixed=fixed)
    return Texts(
        settings=words_settings(words, tokenizer=name),
        rules=native_rules(prefix, head=head),
        tokenizer=tokenizer,
        vocab_size=words.vocab_size,
        eos_id=words.vocab_size - 1 if pool == "argmax" else int(text.get("eos_id", 2)),
        pad_id=tokenizer.pad_id if tokenizer is not None else 0,
    )


def _transformers(found: Checkpoint, text: Mapping[str, Any]) -> Texts:
    place = _model_place(found, str(text["hf_model_name"]))
    config = read_config(place)
    pooler = text.get("hf_pooler_type", "mean_pooler") or (
        "cls_pooler" if config.model_type in _FIRST else "mean_pooler"
    )
    head = _head(found, text, pooler=pooler)
    vocab_size = _vocab_size(found, otherwise=config.vocab_size)
    context, pad_id = int(text.get("context_length", 77)), int(config.pad_token_id or 0)
    name, tokenizer = _tokenizer(found, text, vocab_size=vocab_size, context=context, near=Path(place), pad_id=pad_id)
    pool: Any = dict(POOLERS)[pooler]
    return Texts(
        settings=TextSettings(name=place, tokenizer=name, context=context, pool=pool, head=head),
        rules=transformers_rules(head),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        eos_id=tokenizer.eos_id if tokenizer is not None else -1,
        pad_id=pad_id,
    )


def _head(found: Checkpoint, text: Mapping[str, Any], *, pooler: str) -> HeadKind:
    proj = text.get("hf_proj_type", "mlp")
    # It pools with transformers' pooler where the model has one.
    dense = pooler == "cls_pooler" and found.any(r"text\.transformer\.pooler\.")
    if pooler not in dict(POOLERS) or (dense and proj != "linear"):
        raise UserError(
            f"{found.place} has hf_pooler_type {pooler!r} with hf_proj_type {proj!r}, which no text tower here has; "
            f"known are {', '.join(dict(POOLERS))}, and cls_pooler with a linear projection"
        )
    if dense:
        return "pooler"
    return "linear" if proj == "linear" else "gelu_half" if proj == "mlp" else "none"


def _model_place(found: Checkpoint, name: str) -> str:
    """A folder of that name, from here or beside the weights; else the name, which may be the hub's."""
    home = found.folder or found.place.parent
    places = (Path(name).expanduser(), home / name, home / Path(name).name)
    return next((str(place) for place in places if (place / "config.json").is_file()), name)


def _vocab_size(found: Checkpoint, *, otherwise: int) -> int:
    tables = ("embeddings.word_embeddings.weight", "embed_tokens.weight", "shared.weight", "wte.weight")
    names = [f"text.transformer.{table}" for table in tables]
    return next((found.shape(name)[0] for name in names if name in found.state), otherwise)


def _tokenizer(
    found: Checkpoint,
    text: Mapping[str, Any],
    *,
    vocab_size: int,
    context: int,
    fixed: bool = False,
    near: Path | None = None,
    pad_id: int | None = None,
) -> tuple[str, Tokenizer | None]:
    """The name for `TextSettings.tokenizer`, and the tokenizer with open_clip's cleaning if it is one in files."""
    named = Path(str(text.get("hf_tokenizer_name") or ""))
    home = found.folder or found.place.parent
    homes = [home, *([named] if text.get("hf_tokenizer_name") else []), *([near] if near else [])]
    place = next((each for each in homes if any((each / file).is_file() for file in TOKENIZER_FILES)), None)
    own = not text.get("hf_tokenizer_name") and near is None
    name = find_tokenizer(None if own and vocab_size == 49_408 else place, vocab_size=vocab_size)
    if name in ("clip", "chinese"):
        return name, None
    return name, _cleaned(load_tokenizer(name, context=context, fixed=fixed), text, pad_id=pad_id)


def _cleaned(tokenizer: Tokenizer, text: Mapping[str, Any], *, pad_id: int | None) -> Tokenizer:
    asked = dict(text.get("tokenizer_kwargs") or {})
    cleaning: Any = dict(_CLEANINGS).get(asked.pop("clean", "whitespace"))
    if cleaning is None or any(asked.values()):
        raise UserError(
            f"the configuration asks for tokenizer_kwargs {text['tokenizer_kwargs']}; known here is clean with "
            f"{', '.join(dict(_CLEANINGS))}"
        )
    return Tokenizer(
        tokenizer.inner,
        name=tokenizer.name,
        context=tokenizer.context,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id if pad_id is None else pad_id,
        cleaning=cleaning,
        fixed=tokenizer.fixed,
    )
