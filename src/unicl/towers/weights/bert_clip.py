"""The old layout of BertCLIP (yangjianxin1/CLIP-Chinese): CLIP's image tower beside BERT with its pooler.

A folder of transformers 4.18 whose config.json says "clip" and holds a BERT, for which transformers has no class. It is
read here, and written by `transformers_dual`, whose class is the same mathematics.
"""

from typing import Final

from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.published import Published, assembled
from unicl.towers.weights.transformers_images import clip_image, clip_image_rules, framing_of
from unicl.towers.weights.transformers_parts import COUNTERS, SCALE, nested, read_settings
from unicl.towers.weights.transformers_texts import bert_text, pooler_text_rules, tokenizer_of

NAME: Final = "BertCLIP (CLIP-Chinese)"
WIDTH: Final = 512


def recognises(found: Checkpoint) -> bool:
    """CLIP's image tower, a BERT with its pooler, and two matrices, in a folder that says "clip" or nothing."""
    return (
        found.config.get("model_type", "clip") == "clip"
        and found.has("visual_projection.weight", "text_projection.weight")
        and found.any(r"vision_model\..*embeddings\.class_embedding")
        and found.any(r"text_model\..*embeddings\.word_embeddings")
        and found.any(r"text_model\..*pooler\.dense")
    )


def read(found: Checkpoint) -> Published:
    """The whole model; raises `UserError` naming what is missing, unexpected, of another shape, or not ours."""
    vision = read_settings(found, "CLIPVisionConfig", part="vision_config")
    text = read_settings(found, "BertConfig", part="text_config")
    framing = framing_of(found, size=vision.image_size)
    name, tokenizer = tokenizer_of(found, vocab_size=text.vocab_size, context=text.max_position_embeddings)
    model = Published(
        origin=NAME,
        source=str(found.place),
        image=clip_image(vision, framing=framing),
        text=bert_text(text, tokenizer=name),
        width=found.config.get("projection_dim", WIDTH),
        state={},
        mean=framing.mean,
        std=framing.std,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        vocab_size=text.vocab_size,
        tokenizer=tokenizer,
        notes=(*framing.notes, "texts are read by BERT's pooler (dense layer and tanh), not at the first state"),
    )
    rules = (
        *clip_image_rules(nested(found, "vision_model")),
        *pooler_text_rules(nested(found, "text_model")),
        SCALE,
    )
    return assembled(found.state, model, rules=rules, unused=(COUNTERS,))
