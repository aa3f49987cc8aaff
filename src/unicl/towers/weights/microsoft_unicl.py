"""Microsoft's UniCL: a Swin and a causal text transformer, under the three sets of names that its code has had.

(A) ``visual.*``, ``text.*``, ``vision_projection`` (the trainer, klite, ELEVATER, RegionCLIP); (B) ``image_encoder.*``,
``lang_encoder.*``, ``image_projection``; (C) ``image_encoder.*``, ``text_encoder.*``, ``image_projection`` (the public
class). Source: microsoft/UniCL, model/model.py, model/image_encoder/swin_transformer.py,
model/text_encoder/transformer.py.
"""

from typing import Final

from unicl.errors import UserError
from unicl.towers.text import TextSettings
from unicl.towers.weights import swin
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import ROW, TURNED, Rule, Rules
from unicl.towers.weights.published import IMAGENET_MEAN, IMAGENET_STD, Published, assembled

NAME: Final = "microsoft-unicl"
EPS: Final = 1e-12
"""Of the text tower's layer norms; CLIP's is 1e-5."""

HEAD_WIDTH: Final = 64
END: Final = 49_407
"""CLIP's end mark, which UniCL pads with too; what pads is behind the place that is read and is never seen."""

_IMAGE: Final = ("visual.", "image_encoder.")
_TEXT: Final = ("text.", "lang_encoder.", "text_encoder.")


def recognises(found: Checkpoint) -> bool:
    """Whether there is a Swin under one of the image names and a text transformer directly under one of the text's."""
    image = any(found.any(rf"{root}layers\.\d+\.blocks\.\d+\.attn\.") for root in _IMAGE)
    return image and any(found.any(rf"{root}resblocks\.\d+\.") for root in _TEXT)


def read(found: Checkpoint) -> Published:
    """Both towers, their projections and the scale; raises `UserError` naming what does not fit."""
    image = next(root for root in _IMAGE if found.any(rf"{root}layers\."))
    text = next(root for root in _TEXT if found.any(rf"{root}resblocks\."))
    projection = "vision_projection" if image == "visual." else "image_projection"
    image_settings = swin.settings(found, swin.names("microsoft", root=image), head="linear")
    text_settings, vocab_size = _text_settings(found, root=text)
    model = Published(
        origin="Microsoft UniCL",
        source=str(found.place),
        image=image_settings,
        text=text_settings,
        width=found.shape(projection)[1],
        state={},
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        eos_id=END,
        vocab_size=vocab_size,
    )
    rules = (
        Rule(r"image\.head\.weight", projection, TURNED),
        *swin.rules("microsoft", root=image, stages=swin.stages_of(image_settings)),
        *_text_rules(text),
        Rule(r"log_scale", "logit_scale", ROW),
    )
    return assembled(found.state, model, rules=rules, unused=swin.unused(image))


def _text_settings(found: Checkpoint, *, root: str) -> tuple[TextSettings, int]:
    """The settings, and the size of the vocabulary."""
    vocab_size, width = found.shape(f"{root}token_embedding.weight")
    if vocab_size != END + 1:
        raise UserError(
            f"{found.place}: {root}token_embedding.weight has {vocab_size} rows, but UniCL reads texts with CLIP's "
            f"tokenizer of {END + 1}; give the checkpoint that the trainer saved"
        )
    inner = found.shape(f"{root}resblocks.0.mlp.c_fc.weight")[0]
    settings = TextSettings(
        name="clip",
        tokenizer="clip",
        layers=found.count(rf"{root}resblocks\.(\d+)\."),
        dim=width,
        heads=max(width // HEAD_WIDTH, 1),
        context=found.shape(f"{root}positional_embedding")[0],
        eps=EPS,
        options={} if inner == 4 * width else {"intermediate_size": inner},
    )
    return settings, vocab_size


def _text_rules(root: str) -> Rules:
    # Some versions of transformers keep the text model one level deeper.
    ours = r"text\.backbone\.(?:text_model\.)?"
    block, theirs = rf"{ours}encoder\.layers\.(\d+)", rf"{root}resblocks.\1"
    thirds = (
        Rule(rf"{block}\.self_attn\.{third}_proj\.(weight|bias)", rf"{theirs}.attn.in_proj_\2#{third}")
        for third in "qkv"
    )
    return (
        Rule(rf"{ours}embeddings\.token_embedding\.weight", f"{root}token_embedding.weight"),
        Rule(rf"{ours}embeddings\.position_embedding\.weight", f"{root}positional_embedding"),
        *thirds,
        Rule(rf"{block}\.self_attn\.out_proj\.(weight|bias)", rf"{theirs}.attn.out_proj.\2"),
        Rule(rf"{block}\.layer_norm([12])\.(weight|bias)", rf"{theirs}.ln_\2.\3"),
        Rule(rf"{block}\.mlp\.fc1\.(weight|bias)", rf"{theirs}.mlp.c_fc.\2"),
        Rule(rf"{block}\.mlp\.fc2\.(weight|bias)", rf"{theirs}.mlp.c_proj.\2"),
        Rule(rf"{ours}final_layer_norm\.(weight|bias)", rf"{root}ln_final.\1"),
        Rule(r"text\.head\.weight", "text_projection", TURNED),
    )
