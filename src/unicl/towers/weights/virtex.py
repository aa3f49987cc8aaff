"""VirTex: a ResNet of torchvision that learned from captions; what wrote the captions is left out.

Source: kdexd/virtex, virtex/modules/visual_backbones.py and virtex/models/captioning.py (VirTex, section 3).
"""

from typing import Final

from unicl.towers.weights import resnet, swin
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Unused
from unicl.towers.weights.published import IMAGENET_MEAN, IMAGENET_STD, Published, assembled

NAME: Final = "VirTex"
_IMAGE: Final = "visual.cnn."


def recognises(found: Checkpoint) -> bool:
    """Whether there is a ResNet under "visual.cnn"."""
    return resnet.recognises(found, root=_IMAGE)


def read(found: Checkpoint) -> Published:
    """The image tower, without a head; raises `UserError` naming what does not fit."""
    image = resnet.settings(found, root=_IMAGE, head="none", frame=swin.imagenet_frame(resnet.SIZE))
    deep = image.name not in ("resnet18", "resnet34")
    model = Published(
        origin=NAME,
        source=str(found.place),
        image=image,
        text=None,
        width=2048 if deep else 512,
        state={},
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    captions = Unused(r"(backward_)?textual\..+", "what writes captions, until VirTex's recipe exists")
    rules, unused = resnet.rules(_IMAGE), (captions, *resnet.unused(_IMAGE))
    return assembled(found.state, model, rules=rules, unused=unused, scale=False)
