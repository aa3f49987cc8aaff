"""MedCLIP: a Swin of transformers or a ResNet of torchvision, a clinical BERT, and a matrix behind each.

Source: RyanWangZf/MedCLIP, medclip/modeling_medclip.py, dataset.py and constants.py (MedCLIP, section 3).
"""

from dataclasses import replace
from typing import Final

from unicl.data.image import Frame
from unicl.towers.image import ImageSettings
from unicl.towers.weights import bert, resnet, swin
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import ROW, Rule, Rules, Unused
from unicl.towers.weights.published import Published, assembled

NAME: Final = "MedCLIP"
MEAN: Final = 0.5862785803043838
STD: Final = 0.27950088968644304
"""Of grey X-rays (constants.py)."""

FRAME: Final = Frame(mode="pad")
CONTEXT: Final = 77
_IMAGE: Final = "vision_model."
_TEXT: Final = "text_model.model."
_NOTES: Final = (
    "texts are the mean of the hidden layers 1, 2 and last over all tokens, padding to 77 included; MedCLIP pads to "
    "the longest text at hand, so that its texts depend on their neighbours",
    "pictures are read in colour; MedCLIP saw one grey channel three times",
    "a class scores the mean over its prompts, as the released code's ensembles; without them it takes the best",
)


def recognises(found: Checkpoint) -> bool:
    """Whether there are a BERT under "text_model.model" and an image model under "vision_model.model"."""
    return found.any(rf"{_TEXT}encoder\.layer\.") and found.any(rf"{_IMAGE}model\.")


def read(found: Checkpoint) -> Published:
    """Both towers, their projections and the scale; raises `UserError` naming what does not fit."""
    image, image_rules, unused = _image(found)
    text = bert.settings(found, root=_TEXT, head="linear", pool="padded", context=CONTEXT)
    name, tokenizer = bert.tokenizer(found, root=_TEXT, context=text.context)
    model = Published(
        origin=NAME,
        source=str(found.place),
        image=image,
        text=replace(text, tokenizer=name, states=(1, 2, -1)),
        width=found.shape("text_model.projection_head.weight")[0],
        state={},
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        vocab_size=bert.rows(found, root=_TEXT),
        tokenizer=tokenizer,
        zero_shot={"ensemble": "similarities"},
        notes=_NOTES,
    )
    rules = (
        *image_rules,
        *bert.rules(_TEXT),
        Rule(r"text\.head\.weight", "text_model.projection_head.weight"),
        Rule(r"log_scale", "logit_scale", ROW),
    )
    return assembled(found.state, model, rules=rules, unused=(*unused, *bert.unused(_TEXT)))


def _image(found: Checkpoint) -> tuple[ImageSettings, Rules, tuple[Unused, ...]]:
    root = f"{_IMAGE}model."
    if resnet.recognises(found, root=root):
        head = Rule(r"image\.head\.weight", f"{root}fc.weight")
        return resnet.settings(found, root=root, head="linear", frame=FRAME), (head, *resnet.rules(root)), ()
    settings = replace(swin.settings(found, swin.names("transformers", root=root), head="linear"), frame=FRAME)
    rules = swin.rules("transformers", root=root, stages=swin.stages_of(settings))
    head = Rule(r"image\.head\.weight", f"{_IMAGE}projection_head.weight")
    return settings, (head, *rules), swin.unused(root)
