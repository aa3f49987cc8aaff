"""GLoRIA: a ResNet of torchvision with two matrices behind it, and a clinical BERT without one.

Source: marshuang80/gloria, gloria/models/vision_model.py, text_model.py and gloria_model.py, and
configs/chexpert_pretrain_config.yaml (GLoRIA, section 3). Regions are the places of the third stage; a word is the sum
of its pieces in the last four layers; a text is the sum of all its tokens in these, end mark too, while the words that
look at regions are without it.
"""

from dataclasses import replace
from typing import Final

from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts, TextParts
from unicl.towers.weights import bert, resnet
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import POINT, Rule
from unicl.towers.weights.published import HALF, Published, assembled

NAME: Final = "GLoRIA"
SIZE: Final = 224
ENLARGED: Final = 299
FRAME: Final = Frame(mode="pad", scale=256, interpolation="bilinear")
CONTEXT: Final = 97
STAGE: Final = 3
LAYERS: Final = 4
_ROOTS: Final = ("gloria.", "")
_SCALE: Final = {"init": 10.0, "learned": False}
_TERMS: Final = (
    {"kind": "contrast", "name": "global", "weight": 2.0, "scale": _SCALE},
    {
        "kind": "contrast",
        "name": "local",
        "weight": 2.0,
        "similarity": "attended",
        "use_options": {"over": "max", "skip": 1},
        "scale": _SCALE,
    },
)
"""The sum of both directions of both losses, and the released zero-shot's own local similarity."""

_NOTES: Final = (
    "zero-shot scores are brought to mean 0 and deviation 1 over the pictures at hand, as in the released code: they "
    "depend on the set",
    "pictures are read in colour; GLoRIA saw one grey channel three times",
    "the released zero-shot counts a prompt's letters for its words, and so looks at padding too; here its words count",
)


def recognises(found: Checkpoint) -> bool:
    """Whether there are an image and a text encoder under GLoRIA's names."""
    return any(
        found.any(rf"{root}img_encoder\.model\.") and found.any(rf"{root}text_encoder\.model\.") for root in _ROOTS
    )


def read(found: Checkpoint) -> Published:
    """Both towers, the matrix behind the image's and the one behind its regions.

    Raises `UserError` naming what does not fit, or if the image tower is no ResNet.
    """
    root = next(root for root in _ROOTS if found.any(rf"{root}img_encoder\."))
    image, text = f"{root}img_encoder.model.", f"{root}text_encoder.model."
    if not resnet.recognises(found, root=image):
        raise UserError(f"{found.place}: the image tower under {image} is no ResNet, and no other one is read here")
    words = bert.settings(found, root=text, head="none", pool="mean", context=CONTEXT)
    name, tokenizer = bert.tokenizer(found, root=text, context=words.context)
    parts = TextParts(words=True, layers=min(LAYERS, words.layers), marks="start", unit=False)
    model = Published(
        origin=NAME,
        source=str(found.place),
        image=_image(found, root=image),
        text=replace(words, tokenizer=name, parts=parts),
        width=words.dim,
        state={},
        mean=HALF,
        std=HALF,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        vocab_size=bert.rows(found, root=text),
        tokenizer=tokenizer,
        terms=_TERMS,
        zero_shot={"ensemble": "best", "standardise": True},
        notes=_NOTES,
    )
    rules = (
        Rule(r"image\.head\.(weight|bias)", rf"{root}img_encoder.global_embedder.\1"),
        Rule(r"image\.parts\.head\.weight", f"{root}img_encoder.local_embedder.weight", POINT),
        *resnet.rules(image),
        *bert.rules(text),
    )
    return assembled(found.state, model, rules=rules, unused=bert.unused(text), scale=False)


def _image(found: Checkpoint, *, root: str) -> ImageSettings:
    settings = resnet.settings(found, root=root, head="affine", frame=FRAME, size=SIZE)
    return replace(settings, enlarged=ENLARGED, parts=ImageParts(stage=STAGE, head="linear", unit=False))
