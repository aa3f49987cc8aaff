"""GLoRIA: a ResNet of torchvision with a matrix behind it, and a clinical BERT without one.

Source: marshuang80/gloria, gloria/models/vision_model.py, text_model.py and lightning/pretrain_model.py (GLoRIA,
section 3). The image tower enlarges its input of 224 pixels to 299; ours takes 299 at once.
"""

from dataclasses import replace
from typing import Final

from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.towers.weights import bert, resnet
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Unused
from unicl.towers.weights.published import HALF, Published, assembled

NAME: Final = "GLoRIA"
SIZE: Final = 299
FRAME: Final = Frame(mode="pad", scale=round(SIZE * 256 / 224), interpolation="bilinear")
CONTEXT: Final = 97
_ROOTS: Final = ("gloria.", "")
_NOTES: Final = (
    "GLoRIA's text feature sums word pieces into words and the last four layers; ours is the mean of the last layer "
    "over real tokens: texts differ until its recipe exists",
    f"GLoRIA enlarges pictures of 224 pixels to {SIZE} inside the model; ours are read at {SIZE} at once",
)


def recognises(found: Checkpoint) -> bool:
    """Whether there are an image and a text encoder under GLoRIA's names."""
    return any(
        found.any(rf"{root}img_encoder\.model\.") and found.any(rf"{root}text_encoder\.model\.") for root in _ROOTS
    )


def read(found: Checkpoint) -> Published:
    """Both towers and the matrix behind the image's; the one for its regions is left out.

    Raises `UserError` naming what does not fit, or if the image tower is no ResNet.
    """
    root = next(root for root in _ROOTS if found.any(rf"{root}img_encoder\."))
    image, text = f"{root}img_encoder.model.", f"{root}text_encoder.model."
    if not resnet.recognises(found, root=image):
        raise UserError(f"{found.place}: the image tower under {image} is no ResNet, and no other one is read here")
    words = bert.settings(found, root=text, head="none", pool="mean", context=CONTEXT)
    name, tokenizer = bert.tokenizer(found, root=text, context=words.context)
    model = Published(
        origin=NAME,
        source=str(found.place),
        image=resnet.settings(found, root=image, head="affine", frame=FRAME, size=SIZE),
        text=replace(words, tokenizer=name),
        width=words.dim,
        state={},
        mean=HALF,
        std=HALF,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        vocab_size=bert.rows(found, root=text),
        tokenizer=tokenizer,
        notes=_NOTES,
    )
    why = "the head for regions, until GLoRIA's recipe exists"
    regions = Unused(rf"{root}img_encoder\.local_embedder\.weight", why)
    rules = (
        Rule(r"image\.head\.(weight|bias)", rf"{root}img_encoder.global_embedder.\1"),
        *resnet.rules(image),
        *bert.rules(text),
    )
    unused = (regions, *bert.unused(text))
    return assembled(found.state, model, rules=rules, unused=unused, scale=False)
