"""transformers' ChineseCLIPModel, in and out: config.json with model.safetensors or pytorch_model.bin.

Its vision transformer is CLIP's, its text tower a BERT that reads its first token. Given no attention mask,
transformers lets texts see their padding; cn_clip and this library derive the mask from the padding id.
"""

from pathlib import Path
from typing import Any, Final

from unicl.errors import UserError
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.cn_clip import CONTEXT, FRAME, bert_of, chinese_text, clip_vit_of
from unicl.towers.weights.names import ROW, Rule, Rules, Unused, to_theirs
from unicl.towers.weights.published import Published, assembled
from unicl.towers.weights.transformers_files import Framing, frame_refusal, write_processor, write_weights
from unicl.towers.weights.transformers_images import clip_image, clip_image_rules, framing_of, vision_fields
from unicl.towers.weights.transformers_parts import COUNTERS, SCALE, bias_refusal, read_settings
from unicl.towers.weights.transformers_texts import tokenizer_of, write_words

NAME: Final = "transformers ChineseCLIPModel"
MASKED: Final = "without an attention_mask, transformers reads padding like words; here it is never read"
TEXT_FIELDS: Final = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "pad_token_id",
)
"""Fields of transformers' BertConfig that its relatives share."""
POOLER: Final = Unused(r"text_model\.pooler\.dense\.(weight|bias)", "BERT's pooler, which no text feature goes through")
RULES: Final[Rules] = (
    Rule(r"image\.backbone\.cls_token", "vision_model.embeddings.class_embedding", ROW),
    *clip_image_rules(),
    Rule(r"text\.backbone\.(.+)", r"text_model.\1"),
    Rule(r"text\.head\.weight", "text_projection.weight"),
    SCALE,
)


def recognises(found: Checkpoint) -> bool:
    """CLIP's vision transformer beside a BERT with matrices to a shared width."""
    kind = found.config.get("model_type", "chinese_clip")
    return (
        kind == "chinese_clip"
        and found.any(r"visual_projection\.")
        and found.any(r"vision_model\.(pre|post)_layr?norm\.")
        and found.any(r"text_model\.embeddings\.(word|token_type)_embeddings\.")
    )


def read(found: Checkpoint) -> Published:
    """The whole model; raises `UserError` naming what is missing, unexpected, of another shape, or not ours."""
    config = read_settings(found, "ChineseCLIPConfig")
    vision, text = config.vision_config, config.text_config
    size = vision.image_size
    framing = framing_of(found, size=size, otherwise=Framing(frame=FRAME, size=size))
    context = min(CONTEXT, text.max_position_embeddings)
    name, tokenizer = tokenizer_of(found, vocab_size=text.vocab_size, context=context)
    model = Published(
        origin=NAME,
        source=str(found.place),
        image=clip_image(vision, framing=framing),
        text=chinese_text(text, head="linear", tokenizer=name),
        width=config.projection_dim,
        state={},
        mean=framing.mean,
        std=framing.std,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        vocab_size=text.vocab_size,
        tokenizer=tokenizer,
        notes=(*framing.notes, MASKED),
    )
    return assembled(found.state, model, rules=RULES, unused=(COUNTERS, POOLER))


def refusal(model: Published) -> str | None:
    """What of a model ChineseCLIPModel cannot express: it has CLIP's vision transformer, a BERT, no bias."""
    if model.image is None or model.text is None:
        return "ChineseCLIPModel needs an image and a text tower"
    if clip_vit_of(model) is None:
        return (
            "ChineseCLIPModel's image tower is CLIP's vision transformer with a matrix as head (no ResNet), and this "
            f"one is {model.image.name!r} with {model.image.head!r}"
        )
    if bert_of(model) is None or model.text.head != "linear":
        return (
            "ChineseCLIPModel's text tower is a BERT, its first token read, with a matrix as head; this one is another"
        )
    return bias_refusal(model) or frame_refusal(model.image.frame)


def write(model: Published, folder: Path) -> tuple[Path, ...]:
    """A folder for AutoModel and AutoProcessor; pictures are squashed there if they are here.

    transformers' own default for this model is a crop, so the file that says otherwise belongs to the weights.
    """
    state = to_theirs(model.state, rules=RULES, source=NAME)
    return (
        *write_weights(folder, state, _config(model)),
        *write_processor(
            folder,
            model=model,
            processor_class="ChineseCLIPProcessor",
            image_processor_class="ChineseCLIPImageProcessor",
        ),
        *write_words(folder, model=model),
    )


def text_fields(model: Published) -> dict[str, Any]:
    """The sizes of a BERT as fields of transformers' configurations; raises `UserError` if it is none."""
    config = bert_of(model)
    if config is None:
        raise UserError(f"the text tower of {model.origin} is no BERT that reads its first token")
    return {name: getattr(config, name) for name in TEXT_FIELDS}


def _config(model: Published) -> dict[str, Any]:
    vit = clip_vit_of(model)
    if vit is None or model.image is None:
        raise UserError(f"the image tower of {model.origin} is not CLIP's vision transformer")
    return {
        "architectures": ["ChineseCLIPModel"],
        "model_type": "chinese_clip",
        "projection_dim": model.width,
        "vision_config": {
            **vision_fields(vit, size=model.image.size),
            "projection_dim": model.width,
            "model_type": "chinese_clip_vision_model",
        },
        "text_config": {**text_fields(model), "model_type": "chinese_clip_text_model"},
    }
