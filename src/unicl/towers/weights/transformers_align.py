"""transformers' AlignModel, in and out: a TensorFlow EfficientNet without its last layers, a BERT, a raw temperature.

Its configuration scales EfficientNet's widths and depths by numbers; timm knows the published ones by name. Cosines
are divided by the temperature, so our scale is its inverse.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.towers.image import ImageSettings
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.cn_clip import bert_of
from unicl.towers.weights.names import Change, Rule, Rules, Unused, to_theirs
from unicl.towers.weights.published import HALF, Published, assembled
from unicl.towers.weights.transformers_chinese_clip import text_fields
from unicl.towers.weights.transformers_files import (
    Framing,
    frame_refusal,
    read_frame,
    write_processor,
    write_weights,
)
from unicl.towers.weights.transformers_parts import COUNTERS, bias_refusal, read_settings
from unicl.towers.weights.transformers_texts import bert_text, tokenizer_of, write_words

NAME: Final = "transformers AlignModel"
CONTEXT: Final = 64
SIZE: Final = 289
SCALED: Final = 346
FRAME: Final = Frame(mode="squash", scale=SCALED, interpolation="bilinear")
BN_EPS: Final = 1e-3
INVERSE: Final = Change(lambda value, _like: -value.log(), lambda value: (-value).exp())
"""Ours the logarithm of what cosines are multiplied by, theirs what they are divided by."""
POOLER: Final = Unused(
    r"text_model\.pooler\.dense\.(weight|bias)", "BERT's pooler, which is in the published file but reads no text"
)
SCALES: Final = (
    ((1.0, 1.0), "tf_efficientnet_b0"),
    ((1.0, 1.1), "tf_efficientnet_b1"),
    ((1.1, 1.2), "tf_efficientnet_b2"),
    ((1.2, 1.4), "tf_efficientnet_b3"),
    ((1.4, 1.8), "tf_efficientnet_b4"),
    ((1.6, 2.2), "tf_efficientnet_b5"),
    ((1.8, 2.6), "tf_efficientnet_b6"),
    ((2.0, 3.1), "tf_efficientnet_b7"),
    ((2.2, 3.6), "tf_efficientnet_b8"),
    ((4.3, 5.3), "tf_efficientnet_l2"),
)
"""Coefficients of width and depth (EfficientNet, section 3.3), and timm's name."""
_REPEATS: Final = (1, 2, 2, 3, 3, 4, 1)
_EXPANSIONS: Final = (1, 6, 6, 6, 6, 6, 6)
_FIXED: Final[tuple[tuple[str, object], ...]] = (
    ("num_channels", 3),
    ("depth_divisor", 8),
    ("kernel_sizes", (3, 3, 5, 3, 5, 5, 3)),
    ("in_channels", (32, 16, 24, 40, 80, 112, 192)),
    ("out_channels", (16, 24, 40, 80, 112, 192, 320)),
    ("strides", (1, 2, 2, 2, 1, 2, 1)),
    ("num_block_repeats", _REPEATS),
    ("expand_ratios", _EXPANSIONS),
    ("depthwise_padding", ()),
    ("squeeze_expansion_ratio", 0.25),
    ("hidden_act", "swish"),
    ("pooling_type", "mean"),
)
"""What no published EfficientNet changes."""
_TEXT: Final = (
    Rule(r"text\.backbone\.(.+)", r"text_model.\1"),
    Rule(r"text\.head\.(\w+)", r"text_projection.\1"),
    Rule("log_scale", "temperature", INVERSE),
)


def recognises(found: Checkpoint) -> bool:
    """An EfficientNet with transformers' names beside a BERT and its projection."""
    return (
        found.config.get("model_type", "align") == "align"
        and found.any(r"vision_model\.encoder\.blocks\.\d+\.")
        and found.any(r"text_model\.encoder\.layer\.\d+\.")
    )


def read(found: Checkpoint) -> Published:
    """The whole model; raises `UserError` naming what is missing, unexpected, of another shape, or not ours."""
    config = read_settings(found, "AlignConfig")
    text = config.text_config
    framing = read_frame(found.folder, size=SIZE, otherwise=Framing(frame=FRAME, size=SIZE, mean=HALF, std=HALF))
    context = min(CONTEXT, text.max_position_embeddings)
    name, tokenizer = tokenizer_of(found, vocab_size=text.vocab_size, context=context)
    words = bert_text(text, tokenizer=name, head="affine")
    positions = {"max_position_embeddings": text.max_position_embeddings}
    model = Published(
        origin=NAME,
        source=str(found.place),
        image=_image(config.vision_config, framing=framing),
        text=replace(words, context=context, options={**words.options, **positions}),
        width=config.projection_dim,
        state={},
        mean=framing.mean,
        std=framing.std,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        vocab_size=text.vocab_size,
        tokenizer=tokenizer,
        notes=framing.notes,
    )
    _check_temperature(found)
    return assembled(found.state, model, rules=_rules(model), unused=(COUNTERS, POOLER))


def refusal(model: Published) -> str | None:
    """What of a model AlignModel cannot express: an EfficientNet's last stage, a BERT with an affine head, no bias."""
    if model.image is None or model.text is None:
        return "AlignModel needs an image and a text tower"
    if model.image.name not in {name for _, name in SCALES} or (model.image.pool, model.image.head) != (
        "stage",
        "none",
    ):
        return (
            "AlignModel's image tower is the last stage of a TensorFlow EfficientNet without a head (pool 'stage', "
            f"head 'none'), and this one is {model.image.name!r}, pool {model.image.pool!r}, head {model.image.head!r}"
        )
    if set(model.image.options) - {"bn_eps"}:
        return f"AlignModel has no place for the options {sorted(model.image.options)} of the image tower"
    if bert_of(model) is None or model.text.head != "affine":
        return "AlignModel's text tower is a BERT, its first token read, with an affine head; this one is another"
    return bias_refusal(model) or frame_refusal(model.image.frame)


def write(model: Published, folder: Path) -> tuple[Path, ...]:
    """A folder for AutoModel and AutoProcessor. BERT's pooler, which reads no text, is written as zeros."""
    state = to_theirs(model.state, rules=_rules(model), source=NAME)
    return (
        *write_weights(folder, state | _pooler(model), _config(model)),
        *write_processor(
            folder, model=model, processor_class="AlignProcessor", image_processor_class="EfficientNetImageProcessor"
        ),
        *write_words(folder, model=model),
    )


def _image(vision: Any, *, framing: Framing) -> ImageSettings:
    for name, wanted in _FIXED:
        value = getattr(vision, name)
        if (tuple(value) if isinstance(value, list) else value) != wanted:
            raise UserError(f"its image tower has {name} {value}; the EfficientNets that can be read have {wanted}")
    scales = (float(vision.width_coefficient), float(vision.depth_coefficient))
    found = dict(SCALES).get(scales)
    if found is None:
        known = ", ".join(f"{wide} and {deep}" for (wide, deep), _ in SCALES)
        raise UserError(
            f"its image tower has width_coefficient {scales[0]} and depth_coefficient {scales[1]}, for which timm has "
            f"no EfficientNet; known are {known}"
        )
    options = {} if vision.batch_norm_eps == BN_EPS else {"bn_eps": vision.batch_norm_eps}
    return ImageSettings(name=found, size=framing.size, frame=framing.frame, options=options, pool="stage", head="none")


def _check_temperature(found: Checkpoint) -> None:
    if found.has("temperature") and not bool((found.state["temperature"] > 0).all()):
        raise UserError(
            f"the temperature of {found.place} is {found.state['temperature'].tolist()}; cosines are divided by it, so "
            "it must be positive"
        )


def _rules(model: Published) -> Rules:
    return (*_stem(), *_blocks(model), *_TEXT)


def _stem() -> Rules:
    return (
        Rule(r"image\.backbone\.conv_stem\.weight", "vision_model.embeddings.convolution.weight"),
        Rule(r"image\.backbone\.bn1\.(\w+)", r"vision_model.embeddings.batchnorm.\1"),
    )


def _blocks(model: Published) -> Rules:
    """transformers counts the blocks of all stages through; the first stage's have no expansion."""
    deep = _scales(model)[1]
    places = [(stage, k) for stage, repeats in enumerate(_REPEATS) for k in range(math.ceil(deep * repeats))]
    return tuple(
        Rule(
            rf"image\.backbone\.blocks\.{stage}\.{k}\.{ours}",
            f"vision_model.encoder.blocks.{number}.{theirs}",
        )
        for number, (stage, k) in enumerate(places)
        for ours, theirs in _parts(expands=_EXPANSIONS[stage] > 1)
    )


def _parts(*, expands: bool) -> tuple[tuple[str, str], ...]:
    shared = (
        (r"conv_dw\.(\w+)", r"depthwise_conv.depthwise_conv.\1"),
        (r"se\.conv_(reduce|expand)\.(\w+)", r"squeeze_excite.\1.\2"),
    )
    if not expands:
        return (
            *shared,
            (r"bn1\.(\w+)", r"depthwise_conv.depthwise_norm.\1"),
            (r"conv_pw\.(\w+)", r"projection.project_conv.\1"),
            (r"bn2\.(\w+)", r"projection.project_bn.\1"),
        )
    return (
        *shared,
        (r"conv_pw\.(\w+)", r"expansion.expand_conv.\1"),
        (r"bn1\.(\w+)", r"expansion.expand_bn.\1"),
        (r"bn2\.(\w+)", r"depthwise_conv.depthwise_norm.\1"),
        (r"conv_pwl\.(\w+)", r"projection.project_conv.\1"),
        (r"bn3\.(\w+)", r"projection.project_bn.\1"),
    )


def _scales(model: Published) -> tuple[float, float]:
    """Its coefficients of width and depth; raises `UserError` if it is no EfficientNet of TensorFlow's."""
    found = {name: scales for scales, name in SCALES}.get(model.image.name if model.image else "")
    if found is None:
        raise UserError(f"the image tower of {model.origin} is no EfficientNet of TensorFlow's")
    return found


def _pooler(model: Published) -> dict[str, Tensor]:
    features = text_fields(model)["hidden_size"]
    return {
        "text_model.pooler.dense.weight": torch.zeros(features, features),
        "text_model.pooler.dense.bias": torch.zeros(features),
    }


def _config(model: Published) -> dict[str, Any]:
    if model.image is None:
        raise UserError(f"{model.origin} has no image tower")
    wide, deep = _scales(model)
    vision = {
        **dict(_FIXED),
        "model_type": "align_vision_model",
        "image_size": model.image.size,
        "width_coefficient": wide,
        "depth_coefficient": deep,
        "hidden_dim": model.width,
        "batch_norm_eps": model.image.options.get("bn_eps", BN_EPS),
    }
    return {
        "architectures": ["AlignModel"],
        "model_type": "align",
        "projection_dim": model.width,
        "vision_config": vision,
        "text_config": {**text_fields(model), "model_type": "align_text_model"},
    }
