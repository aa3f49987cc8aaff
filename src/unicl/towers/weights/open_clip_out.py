"""A model as open_clip's folder: its configuration, its weights, and its tokenizer unless that is CLIP's."""

import json
from pathlib import Path
from typing import Any, Final

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unicl.data.text import is_clips
from unicl.errors import UserError
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import OWN_NAMES, TextTower
from unicl.towers.weights import open_clip, openai
from unicl.towers.weights.names import Rules, to_theirs
from unicl.towers.weights.native import EPS, Vision, Words, find_vision, find_words
from unicl.towers.weights.open_clip_texts import POOLERS, native_rules, transformers_rules
from unicl.towers.weights.published import Published
from unicl.towers.weights.transformers_files import kind_of, write_tokenizer

NAME: Final = "open_clip"
WEIGHTS: Final = "open_clip_model.safetensors"
PLAIN: Final = "open_clip_model.pt"

_TEXT_MODELS: Final = ("roberta", "xlm-roberta", "mt5", "bert", "m2m_100")
"""Models of transformers that open_clip knows (open_clip/hf_configs.py)."""
_HEADS: Final = (("linear", "linear"), ("affine", "linear"), ("gelu_double", "mlp"), ("none", "none"))
_PROJECTIONS: Final = (("linear", "linear"), ("gelu_half", "mlp"), ("pooler", "linear"), ("none", None))


def refusal(model: Published) -> str | None:
    """What of the model open_clip's configuration cannot say."""
    try:
        _model_config(model, texts="")
    except UserError as error:
        return str(error)
    return None


def write(model: Published, folder: Path) -> tuple[Path, ...]:
    """Write open_clip_config.json, the weights as safetensors and as a plain .pt, and what the texts need.

    `open_clip.create_model_and_transforms("local-dir:FOLDER")` reads the folder; with a text tower of transformers',
    the configuration names a folder inside, so that it has to stay where it is.
    """
    texts = folder.resolve() / "text"
    config = {"model_cfg": _model_config(model, texts=str(texts)), "preprocess_cfg": _preprocessing(model)}
    state = {key: value.detach().cpu().contiguous().clone() for key, value in _state(model).items()}
    place = folder / open_clip.CONFIG
    place.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    torch.save(state, folder / PLAIN)
    files: tuple[Path, ...] = (place, folder / WEIGHTS, folder / PLAIN)
    if "hf_model_name" in config["model_cfg"]["text_cfg"]:
        _text_tower(model).save_config(texts)
        files = (*files, texts / "config.json")
    if model.tokenizer is not None and not is_clips(model.tokenizer):
        files += write_tokenizer(folder, tokenizer=model.tokenizer, kind=kind_of(model.tokenizer))
    return files


def _model_config(model: Published, *, texts: str) -> dict[str, Any]:
    """``model_cfg``; raises `UserError` with what cannot be said."""
    if model.image is None or model.text is None:
        raise UserError("open_clip's layout holds an image tower and a text tower; one is missing")
    vision, text = _vision_config(model, model.image), _text_config(model, texts=texts)
    acts = {section.pop("act") for section in (vision, text) if "act" in section}
    if "quick_gelu" in acts and len(acts) > 1:
        raise UserError("open_clip has one switch for QuickGELU in both towers, and only one tower here has it")
    config = {"embed_dim": model.width, "vision_cfg": vision, "text_cfg": text}
    if "timm_model_name" in vision or "hf_model_name" in text or text.get("no_causal_mask"):
        config["custom_text"] = True
    if "quick_gelu" in acts:
        config["quick_gelu"] = True
    return config if model.bias is None else config | {"init_logit_bias": model.bias}


def _vision_config(model: Published, settings: ImageSettings) -> dict[str, Any]:
    if openai.is_published_resnet(settings):
        layers, width = next((blocks, first) for blocks, first, name in openai.RESNETS if name == settings.name)
        return {"image_size": settings.size, "layers": list(layers), "width": width, "patch_size": None}
    found = find_vision(settings, width=model.width)
    return _transformer_config(found) if found is not None else _trunk_config(settings, width=model.width)


def _transformer_config(vision: Vision) -> dict[str, Any]:
    more = {
        "mlp_ratio": _ratio(vision.inner, vision.width),
        "ls_init_value": 1e-5 if vision.layer_scale else None,
        "pool_type": "avg" if vision.mean else None,
        "final_ln_after_pool": vision.mean_first or None,
        "act_kwargs": {"approximate": "tanh"} if vision.act == "gelu_tanh" else None,
    }
    return {
        "image_size": vision.size,
        "layers": vision.layers,
        "width": vision.width,
        "head_width": vision.width // vision.heads,
        "patch_size": vision.patch,
        "act": vision.act,
        **{key: value for key, value in more.items() if value is not None},
    }


def _ratio(inner: int, width: int) -> float | None:
    """What a width is multiplied by and cut off; None for 4."""
    ratio = inner / width
    return None if inner == 4 * width else ratio if int(width * ratio) == inner else (inner + 0.5) / width


def _trunk_config(settings: ImageSettings, *, width: int) -> dict[str, Any]:
    if settings.head not in dict(_HEADS):
        raise UserError(f"open_clip has no head {settings.head!r} for images; it has {', '.join(dict(_HEADS))}")
    with torch.device("meta"):
        tower = ImageTower(settings, width=width)
    pool = _timm_pool(tower, settings)
    _check_trunk(tower, _their_trunk(settings, pool=pool), settings)
    return {
        "timm_model_name": settings.name,
        "timm_pool": pool,
        "timm_proj": dict(_HEADS)[settings.head],
        "timm_proj_bias": settings.head == "affine",
        "timm_drop": 0.0,
        "image_size": settings.size,
    }


def _timm_pool(tower: ImageTower, settings: ImageSettings) -> str:
    backbone: Any = tower.backbone
    if settings.head != "none" and settings.pool == "default":
        return ""
    if settings.pool != "default":
        return settings.pool
    named = getattr(backbone, "global_pool", None)
    named = named if isinstance(named, str) else getattr(getattr(backbone.head, "global_pool", None), "pool_type", None)
    if not named:
        raise UserError(f"open_clip has to be told how {settings.name!r} pools, and timm does not say it")
    return str(named)


def _their_trunk(settings: ImageSettings, *, pool: str) -> nn.Module:
    """timm's model as open_clip makes it (open_clip/timm_model.py)."""
    try:
        with torch.device("meta"):
            if settings.head == "none":
                model: Any = timm.create_model(settings.name, num_classes=0, global_pool=pool)
            else:
                model = timm.create_model(settings.name)
                model.reset_classifier(0, **({"global_pool": pool} if pool else {}))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"open_clip cannot make {settings.name!r} with the pool {pool!r}: {error}") from error
    found: nn.Module = model
    return found


def _check_trunk(tower: ImageTower, trunk: nn.Module, settings: ImageSettings) -> None:
    ours, theirs = ({k: v.shape for k, v in each.state_dict().items()} for each in (tower.backbone, trunk))
    extra = list(tower.pool.state_dict()) + sorted(set(ours) ^ set(theirs))
    extra += [key for key in ours if key in theirs and ours[key] != theirs[key]]
    known = {"fc_norm": False}
    odd = {key: value for key, value in settings.options.items() if (key, value) not in known.items()}
    if extra or odd:
        raise UserError(
            f"open_clip makes {settings.name!r} as timm's name says it, without options, for its own image size; this "
            f"tower differs ({', '.join([*extra[:2], *odd])})"
        )


def _text_config(model: Published, *, texts: str) -> dict[str, Any]:
    words = find_words(model)
    if isinstance(words, Words):
        return _words_config(words, model)
    settings, config = model.text, _text_tower(model).backbone.config
    assert settings is not None
    names = {pool: name for name, pool in POOLERS}
    pool, head = _text_tower(model).pool, settings.head
    if config.model_type not in _TEXT_MODELS or settings.fixed:
        raise UserError(f"open_clip has no place for this text tower: {words}; it knows {', '.join(_TEXT_MODELS)}")
    if pool not in names or head not in dict(_PROJECTIONS) or (head == "pooler" and pool != "cls"):
        raise UserError(f"open_clip has no place for a text tower that pools {pool!r} with the head {head!r}")
    own = settings.name in OWN_NAMES or Path(settings.name).expanduser().exists()
    return {
        "hf_model_name": texts if own else settings.name,
        "hf_tokenizer_name": texts if own else settings.name,
        "hf_pooler_type": "cls_pooler" if head == "pooler" else names[pool],
        "hf_proj_type": dict(_PROJECTIONS)[head],
        "context_length": settings.context,
    }


def _words_config(words: Words, model: Published) -> dict[str, Any]:
    tokenizer = model.tokenizer
    more = {
        "mlp_ratio": _ratio(words.inner, words.width),
        "no_causal_mask": not words.causal or None,
        "pool_type": words.pool if words.pool != "argmax" else None,
        "eos_id": model.eos_id if words.pool == "eos" else None,
        "proj_bias": words.head == "affine" or None,
        "proj_type": "none" if words.head == "none" else None,
        "norm_kwargs": {"eps": words.eps} if words.eps != EPS else None,
        "act_kwargs": {"approximate": "tanh"} if words.act == "gelu_tanh" else None,
        "hf_tokenizer_name": None if tokenizer is None or is_clips(tokenizer) else tokenizer.name,
    }
    return {
        "context_length": words.context,
        "vocab_size": words.vocab_size,
        "width": words.width,
        "heads": words.heads,
        "layers": words.layers,
        "act": words.act,
        **{key: value for key, value in more.items() if value is not None},
    }


def _preprocessing(model: Published) -> dict[str, Any]:
    assert model.image is not None
    frame, modes = model.image.frame, {ours: theirs for theirs, ours in open_clip.MODES}
    return {
        "size": model.image.size,
        "mode": "RGB",
        "mean": list(model.mean),
        "std": list(model.std),
        "interpolation": frame.interpolation,
        "resize_mode": modes[frame.mode],
        "fill_color": 0,
    }


def _state(model: Published) -> dict[str, Tensor]:
    assert model.image is not None
    rules = (*_image_rules(model, model.image), *_text_rules(model), *openai.SCALARS)
    return to_theirs(model.state, rules=rules, source="open_clip's layout")


def _image_rules(model: Published, settings: ImageSettings) -> Rules:
    if openai.is_published_resnet(settings):
        return openai.RESNET
    if find_vision(settings, width=model.width) is not None:
        return openai.VIT
    with torch.device("meta"):
        tower = ImageTower(settings, width=model.width)
    return open_clip.trunk_rules(tower, head=dict(_HEADS)[settings.head])


def _text_rules(model: Published) -> Rules:
    words = find_words(model)
    assert model.text is not None
    if isinstance(words, str):
        return transformers_rules(model.text.head)
    custom = _model_config(model, texts="").get("custom_text")
    return native_rules("text." if custom else "", head=words.head)


def _text_tower(model: Published) -> TextTower:
    assert model.text is not None
    with torch.device("meta"):
        return TextTower(
            model.text, width=model.width, vocab_size=model.vocab_size, eos_id=model.eos_id, pad_id=model.pad_id
        )
