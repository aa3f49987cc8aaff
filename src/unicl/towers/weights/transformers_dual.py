"""transformers' VisionTextDualEncoderModel, in and out: any of its image models beside any of its text models.

The general way out: `TimmWrapperModel` inside it holds every model of timm's, and so every image tower of ours that
ends on a matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from unicl.errors import UserError
from unicl.towers.image import ImageSettings, ImageTower, timm_arguments
from unicl.towers.text import TextSettings
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Rules, to_theirs
from unicl.towers.weights.published import Published, assembled
from unicl.towers.weights.transformers_files import Framing, frame_refusal, read_frame, write_processor, write_weights
from unicl.towers.weights.transformers_images import (
    Vit,
    clip_image,
    clip_image_rules,
    framing_of,
    is_clip,
    is_plain,
    vision_fields,
    vit_image,
    vit_image_rules,
    vit_of,
)
from unicl.towers.weights.transformers_parts import COUNTERS, SCALE, bias_refusal, nested, read_settings
from unicl.towers.weights.transformers_texts import (
    bert_text,
    clip_text,
    clip_text_rules,
    context_of,
    end_not_two,
    end_of_clip,
    folder_text,
    pooler_text_rules,
    text_config,
    text_refusal,
    tokenizer_of,
    write_words,
)

NAME: Final = "transformers VisionTextDualEncoderModel"
TYPE: Final = "vision-text-dual-encoder"
CLIP_TEXT: Final = "clip_text_model"
POOLED: Final = ("bert", "roberta", "xlm-roberta", "camembert", "ernie")
"""Text models that end on BERT's dense layer and tanh of the first token."""
_WRAPPED: Final[Rules] = (
    Rule(r"image\.backbone\.(.+)", r"vision_model.timm_model.\1"),
    Rule(r"image\.head\.weight", "visual_projection.weight"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One tower in their words: the fields of its configuration, and the rules of its names."""

    config: Mapping[str, Any]
    rules: Rules


def recognises(found: Checkpoint) -> bool:
    """By its configuration: the same tensors are a CLIPModel's in another folder."""
    return found.config.get("model_type") == TYPE


def read(found: Checkpoint) -> Published:
    """The whole model; raises `UserError` naming what is missing, unexpected, of another shape, or not ours."""
    config = read_settings(found, "VisionTextDualEncoderConfig")
    framing, image, image_rules = _image(found, config.vision_config)
    text = config.text_config
    if text.model_type not in (CLIP_TEXT, *POOLED):
        raise UserError(
            f"{found.place} has a text tower of type {text.model_type!r}, whose pooling is not known; known are "
            f"{CLIP_TEXT}, {', '.join(POOLED)}"
        )
    name, tokenizer = tokenizer_of(found, vocab_size=text.vocab_size, context=context_of(text))
    settings, text_rules = _text(found, text, tokenizer=name)
    eos_id, notes = tokenizer.eos_id, tuple[str, ...]()
    if settings.pool == "eos":
        eos_id, notes = end_of_clip(text, tokenizer=tokenizer, place=found.place)
    model = Published(
        origin=NAME,
        source=str(found.place),
        image=image,
        text=settings,
        width=config.projection_dim,
        state={},
        mean=framing.mean,
        std=framing.std,
        eos_id=eos_id,
        pad_id=text.pad_token_id if settings.name not in ("clip", "bert") else tokenizer.pad_id,
        vocab_size=text.vocab_size,
        tokenizer=tokenizer,
        notes=(*framing.notes, *notes),
    )
    return assembled(found.state, model, rules=(*image_rules, *text_rules, SCALE), unused=(COUNTERS,))


def refusal(model: Published) -> str | None:
    """What of a model VisionTextDualEncoderModel cannot express."""
    if model.image is None or model.text is None:
        return "VisionTextDualEncoderModel needs an image and a text tower"
    for side in (_image_side(model), _text_side(model)):
        if isinstance(side, str):
            return side
    return bias_refusal(model) or frame_refusal(model.image.frame)


def write(model: Published, folder: Path) -> tuple[Path, ...]:
    """Write config.json, model.safetensors, and the files of the tokenizer and of the preprocessing."""
    model = end_not_two(model)
    image, text = _image_side(model), _text_side(model)
    if isinstance(image, str) or isinstance(text, str):
        raise UserError(f"{NAME} cannot hold this model: {image if isinstance(image, str) else text}")
    state = to_theirs(model.state, rules=(*image.rules, *text.rules, SCALE), source=NAME)
    if "visual_projection.weight" not in state:
        # Features that are the embedding already go through a matrix that changes nothing.
        state["visual_projection.weight"] = torch.eye(model.width)
    return (
        *write_weights(folder, state, _config(model, image=image, text=text)),
        *write_processor(
            folder,
            model=model,
            processor_class="VisionTextDualEncoderProcessor",
            image_processor_class="CLIPImageProcessor",
        ),
        *write_words(folder, model=model),
    )


def _image(found: Checkpoint, vision: Any) -> tuple[Framing, ImageSettings, Rules]:
    place = nested(found, "vision_model")
    match vision.model_type:
        case "clip_vision_model":
            framing = framing_of(found, size=vision.image_size)
            return framing, clip_image(vision, framing=framing), clip_image_rules(place)
        case "vit":
            framing = framing_of(found, size=vision.image_size)
            return framing, vit_image(vision, framing=framing), vit_image_rules(place)
        case "timm_wrapper" if vision.do_pooling:
            options = dict(vision.model_args or {})
            side = options.pop("img_size", None)
            framing = read_frame(found.folder, size=224) if side is None else framing_of(found, size=side)
            settings = ImageSettings(name=vision.architecture, size=framing.size, options=options, frame=framing.frame)
            return framing, settings, _WRAPPED
        case other:
            raise UserError(
                f"{found.place} has an image tower of type {other!r}; known are clip_vision_model, vit and "
                "timm_wrapper with do_pooling"
            )


def _text(found: Checkpoint, text: Any, *, tokenizer: str) -> tuple[TextSettings, Rules]:
    place = nested(found, "text_model")
    match text.model_type:
        case "clip_text_model":
            return clip_text(text, tokenizer=tokenizer), clip_text_rules(place)
        case "bert":
            return bert_text(text, tokenizer=tokenizer), pooler_text_rules(place)
        case _:
            # Only a folder has a configuration, and so comes here.
            return folder_text(text, folder=found.folder or found.place, tokenizer=tokenizer), pooler_text_rules(place)


def _image_side(model: Published) -> _Side | str:
    assert model.image is not None
    vit = vit_of(model.image, width=model.width)
    fields = {} if vit is None else vision_fields(vit, size=model.image.size)
    if vit is not None and model.image.head == "linear" and is_clip(vit):
        return _Side(config=fields | {"model_type": "clip_vision_model"}, rules=clip_image_rules())
    if vit is not None and model.image.head == "pooler" and is_plain(vit):
        return _Side(config=fields | _pooled(vit), rules=vit_image_rules())
    return _wrapped(model)


def _pooled(vit: Vit) -> dict[str, Any]:
    return {
        "model_type": "vit",
        "pooler_act": "tanh",
        "pooler_output_size": vit.width,
        "qkv_bias": vit.qkv_bias,
    }


def _wrapped(model: Published) -> _Side | str:
    """An image tower as timm's model inside of transformers."""
    image = model.image
    assert image is not None
    if image.head not in ("linear", "none"):
        return f"an image tower of timm's ends on a matrix there, and this one on the head {image.head!r}"
    if image.eps is not None:
        return f"the image tower has layer norms with eps {image.eps}, which timm's model there cannot be told"
    arguments = timm_arguments(replace(image, drop_path=0.0, patch_drop=0.0), width=model.width)
    if (
        arguments.pop("num_classes")
        or image.pool == "stage"
        or any(key.startswith("image.pool.") for key in model.state)
    ):
        return f"the image tower ends on the pool {image.pool!r} of ours, for which there is no place"
    with torch.device("meta"):
        features = ImageTower(image, width=model.width).feature_width
    config = {
        "model_type": "timm_wrapper",
        "architecture": image.name,
        "model_args": arguments,
        "do_pooling": True,
        "num_classes": 0,
        "hidden_size": features,
    }
    return _Side(config=config, rules=_WRAPPED)


def _text_side(model: Published) -> _Side | str:
    assert model.text is not None
    config, head = text_config(model), model.text.head
    if config.model_type == CLIP_TEXT:
        if head != "linear":
            return f"CLIP's text tower ends on a matrix there, and this one on the head {head!r}"
        return text_refusal(model) or _Side(config=config.to_dict(), rules=clip_text_rules())
    if config.model_type not in POOLED:
        return f"a text tower of type {config.model_type!r} has no place there"
    if head != "pooler" or model.text.pool not in ("default", "cls"):
        return (
            "texts go through BERT's dense layer and tanh there (head 'pooler', pool 'cls'), and this text tower has "
            f"the head {head!r} and the pool {model.text.pool!r}"
        )
    if model.text.fixed:
        return "the text tower reads padding like words, which nothing there can say"
    return _Side(config=config.to_dict(), rules=pooler_text_rules())


def _config(model: Published, *, image: _Side, text: _Side) -> dict[str, Any]:
    from transformers import VisionTextDualEncoderConfig

    scale: Tensor = model.state["log_scale"]
    config = VisionTextDualEncoderConfig(
        vision_config=dict(image.config),
        text_config=dict(text.config),
        projection_dim=model.width,
        logit_scale_init_value=float(scale),
    )
    return {**config.to_dict(), "architectures": ["VisionTextDualEncoderModel"]}
