"""transformers' SiglipModel, in and out: SigLIP, and the checkpoints of SigLIP 2 with one fixed resolution."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.towers.text import TextSettings
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import ROW, TABLE, Rule, Rules, to_theirs
from unicl.towers.weights.published import HALF, Published, assembled
from unicl.towers.weights.transformers_files import Framing, frame_refusal, write_processor, write_weights
from unicl.towers.weights.transformers_images import framing_of, siglip_image, vision_fields, vit_of
from unicl.towers.weights.transformers_parts import COUNTERS, nested, read_settings
from unicl.towers.weights.transformers_texts import text_config, text_of, tokenizer_of, write_words

NAME: Final = "transformers SiglipModel"
_JOINED: Final = ("in_proj_weight", "in_proj_bias")
"""Their query, key and value in one; ours are a query, and a key with a value."""


def recognises(found: Checkpoint) -> bool:
    """A scale and a bias, a text head, and a learned query over the patches."""
    return found.has("logit_scale", "logit_bias") and found.any(r"vision_model\..*(head\.probe|patch_embedding)")


def read(found: Checkpoint) -> Published:
    """The whole model; raises `UserError` naming what is missing, unexpected, of another shape, or not ours."""
    place = nested(found, "vision_model")
    _check_fixed(found, place=place)
    config = read_settings(found, "SiglipConfig")
    vision, text = config.vision_config, config.text_config
    square = Framing(size=vision.image_size, frame=Frame(mode="squash"), mean=HALF, std=HALF)
    framing = framing_of(found, size=vision.image_size, otherwise=square)
    if not vision.vision_use_head:
        raise UserError(f"{found.place} has an image tower without its head; only the whole SiglipModel can be read")
    context = text.max_position_embeddings
    name, tokenizer = tokenizer_of(found, vocab_size=text.vocab_size, context=context, fixed=True)
    model = Published(
        origin=NAME,
        source=str(found.place),
        image=siglip_image(vision, framing=framing),
        text=_text(text, tokenizer=name),
        width=vision.hidden_size,
        state={},
        mean=framing.mean,
        std=framing.std,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        vocab_size=text.vocab_size,
        tokenizer=tokenizer,
        notes=framing.notes,
    )
    rules = _rules(vision_model=place, text_model=nested(found, "text_model"))
    return assembled(_parted(found.state), model, rules=rules, unused=(COUNTERS,), bias=True)


def refusal(model: Published) -> str | None:
    """What of a model SiglipModel cannot express: it has SigLIP's two transformers, a scale and a bias."""
    if model.image is None or model.text is None:
        return "SiglipModel needs an image and a text tower"
    vit = vit_of(model.image, width=model.width)
    if vit is None or vit.pre_norm or vit.class_token or vit.pool != "map" or not (vit.patch_bias and vit.qkv_bias):
        return f"SiglipModel's image tower is SigLIP's vision transformer, and this one is {model.image.name!r}"
    if model.image.head != "none" or model.text.head != "affine":
        return f"SiglipModel's heads are none and affine, and these are {model.image.head!r} and {model.text.head!r}"
    if text_config(model).model_type != "siglip_text_model" or not model.text.fixed:
        return "the text tower is not SigLIP's, which reads padding like words"
    if model.text.pool not in ("default", "last"):
        return f"SigLIP's text tower is read at its last place, and this one by {model.text.pool!r}"
    if model.bias is None or model.scale is None:
        return "the model has no bias, which SiglipModel adds to scores"
    return frame_refusal(model.image.frame)


def write(model: Published, folder: Path) -> tuple[Path, ...]:
    """Write config.json, model.safetensors, and the files of the tokenizer and of the preprocessing."""
    rules = _rules(vision_model="vision_model", text_model="text_model")
    state = _joined(to_theirs(model.state, rules=rules, source=NAME))
    return (
        *write_weights(folder, state, _config(model)),
        *write_processor(
            folder, model=model, processor_class="SiglipProcessor", image_processor_class="SiglipImageProcessor"
        ),
        *write_words(folder, model=model),
    )


def _check_fixed(found: Checkpoint, *, place: str) -> None:
    patches = found.state.get(f"{place}.embeddings.patch_embedding.weight")
    if found.config.get("model_type") == "siglip2" or (patches is not None and patches.ndim == 2):
        raise UserError(
            f"{found.place} is a SigLIP 2 NaFlex model, which reads pictures of any shape as a list of patches; ours "
            "are squares: take the checkpoint of the same model with a fixed resolution, such as patch16-256"
        )


def _text(text: Any, *, tokenizer: str) -> TextSettings:
    plain = text_of(text, name="siglip", tokenizer=tokenizer, pool="last", act="gelu_pytorch_tanh")
    return replace(plain, head="affine", fixed=True)


def _rules(*, vision_model: str, text_model: str) -> Rules:
    image, head = r"image\.backbone", f"{vision_model}.head"
    layer = rf"{vision_model}.encoder.layers.\1"
    return (
        Rule(rf"{image}\.pos_embed", f"{vision_model}.embeddings.position_embedding.weight", TABLE),
        Rule(rf"{image}\.patch_embed\.proj\.(\w+)", rf"{vision_model}.embeddings.patch_embedding.\1"),
        Rule(rf"{image}\.norm\.(\w+)", rf"{vision_model}.post_layernorm.\1"),
        Rule(rf"{image}\.blocks\.(\d+)\.norm(\d)\.(\w+)", rf"{layer}.layer_norm\2.\3"),
        Rule(rf"{image}\.blocks\.(\d+)\.attn\.qkv\.(\w+)", rf"{layer}.self_attn.{{q,k,v}}_proj.\2"),
        Rule(rf"{image}\.blocks\.(\d+)\.attn\.proj\.(\w+)", rf"{layer}.self_attn.out_proj.\2"),
        Rule(rf"{image}\.blocks\.(\d+)\.mlp\.(fc\d)\.(\w+)", rf"{layer}.mlp.\2.\3"),
        Rule(rf"{image}\.attn_pool\.latent", f"{head}.probe"),
        Rule(rf"{image}\.attn_pool\.(q|kv)\.(\w+)", rf"{head}.attention.in_proj_\2[\1]"),
        Rule(rf"{image}\.attn_pool\.proj\.(\w+)", rf"{head}.attention.out_proj.\1"),
        Rule(rf"{image}\.attn_pool\.norm\.(\w+)", rf"{head}.layernorm.\1"),
        Rule(rf"{image}\.attn_pool\.mlp\.(fc\d)\.(\w+)", rf"{head}.mlp.\1.\2"),
        Rule(r"text\.backbone\.(?:text_model\.)?(.+)", rf"{text_model}.\1"),
        Rule(r"text\.head\.(\w+)", rf"{text_model}.head.\1"),
        Rule("log_scale", "logit_scale", ROW),
        Rule("bias", "logit_bias", ROW),
    )


def _parted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state with the query and the rest of the pool's attention apart, as ours are."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        third = len(value) // 3 if name.endswith(_JOINED) else 0
        found |= {f"{name}[q]": value[:third], f"{name}[kv]": value[third:]} if third else {name: value}
    return found


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {name: value for name, value in state.items() if not name.endswith("]")}
    wholes = [name.removesuffix("[q]") for name in state if name.endswith("[q]")]
    return found | {name: torch.cat([state[f"{name}[q]"], state[f"{name}[kv]"]]) for name in wholes}


def _config(model: Published) -> dict[str, Any]:
    from transformers import SiglipConfig

    assert model.image is not None
    vit = vit_of(model.image, width=model.width)
    assert vit is not None
    text = text_config(model).to_dict() | {"projection_size": model.width}
    config = SiglipConfig(vision_config=vision_fields(vit, size=model.image.size), text_config=text)
    return {**config.to_dict(), "architectures": ["SiglipModel"]}
