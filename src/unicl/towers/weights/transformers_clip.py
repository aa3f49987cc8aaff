"""transformers' CLIPModel, in and out: config.json with model.safetensors or pytorch_model.bin."""

from pathlib import Path
from typing import Any, Final

from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rules, to_theirs
from unicl.towers.weights.published import Published, assembled
from unicl.towers.weights.transformers_files import frame_refusal, write_processor, write_weights
from unicl.towers.weights.transformers_images import (
    clip_image,
    clip_image_rules,
    framing_of,
    is_clip,
    vision_fields,
    vit_of,
)
from unicl.towers.weights.transformers_parts import COUNTERS, SCALE, bias_refusal, nested, read_settings
from unicl.towers.weights.transformers_texts import (
    clip_text,
    clip_text_rules,
    end_not_two,
    end_of_clip,
    text_config,
    text_refusal,
    tokenizer_of,
    write_words,
)

NAME: Final = "transformers CLIPModel"


def recognises(found: Checkpoint) -> bool:
    """CLIP's two transformers and two matrices, in a folder that does not say it is another class of the same parts."""
    return (
        found.config.get("model_type", "clip") == "clip"
        and found.has("visual_projection.weight", "text_projection.weight")
        and found.any(r"vision_model\..*embeddings\.class_embedding")
        and found.any(r"text_model\..*embeddings\.token_embedding")
    )


def read(found: Checkpoint) -> Published:
    """The whole model; raises `UserError` naming what is missing, unexpected, of another shape, or not ours."""
    config = read_settings(found, "CLIPConfig")
    vision, text = config.vision_config, config.text_config
    framing = framing_of(found, size=vision.image_size)
    name, tokenizer = tokenizer_of(found, vocab_size=text.vocab_size, context=text.max_position_embeddings)
    eos_id, notes = end_of_clip(text, tokenizer=tokenizer, place=found.place)
    model = Published(
        origin=NAME,
        source=str(found.place),
        image=clip_image(vision, framing=framing),
        text=clip_text(text, tokenizer=name),
        width=config.projection_dim,
        state={},
        mean=framing.mean,
        std=framing.std,
        eos_id=eos_id,
        pad_id=tokenizer.pad_id,
        vocab_size=text.vocab_size,
        tokenizer=tokenizer,
        notes=(*framing.notes, *notes),
    )
    places = {side: nested(found, side) for side in ("vision_model", "text_model")}
    return assembled(found.state, model, rules=_rules(**places), unused=(COUNTERS,))


def refusal(model: Published) -> str | None:
    """What of a model CLIPModel cannot express: it has CLIP's vision transformer, CLIP's text transformer, no bias."""
    if model.image is None or model.text is None:
        return "CLIPModel needs an image and a text tower"
    vit = vit_of(model.image, width=model.width)
    if vit is None or not is_clip(vit):
        return f"CLIPModel's image tower is CLIP's vision transformer, and this one is {model.image.name!r}"
    if model.image.head != "linear" or model.text.head != "linear":
        return f"CLIPModel's heads are linear, and these are {model.image.head!r} and {model.text.head!r}"
    return text_refusal(model) or bias_refusal(model) or frame_refusal(model.image.frame)


def write(model: Published, folder: Path) -> tuple[Path, ...]:
    """Write config.json, model.safetensors, and the files of the tokenizer and of the preprocessing."""
    model = end_not_two(model)
    rules = _rules(vision_model="vision_model", text_model="text_model")
    state = to_theirs(model.state, rules=rules, source=NAME)
    return (
        *write_weights(folder, state, _config(model)),
        *write_processor(
            folder, model=model, processor_class="CLIPProcessor", image_processor_class="CLIPImageProcessor"
        ),
        *write_words(folder, model=model),
    )


def _rules(*, vision_model: str, text_model: str) -> Rules:
    return (*clip_image_rules(vision_model), *clip_text_rules(text_model), SCALE)


def _config(model: Published) -> dict[str, Any]:
    from transformers import CLIPConfig

    assert model.image is not None
    vit = vit_of(model.image, width=model.width)
    assert vit is not None
    config = CLIPConfig(
        vision_config=vision_fields(vit, size=model.image.size) | {"projection_dim": model.width},
        text_config=text_config(model).to_dict() | {"projection_dim": model.width},
        projection_dim=model.width,
        logit_scale_init_value=float(model.state["log_scale"]),
    )
    return {**config.to_dict(), "architectures": ["CLIPModel"]}
