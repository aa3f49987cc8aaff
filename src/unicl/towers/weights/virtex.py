"""VirTex: a ResNet of torchvision that learned from captions, and the decoder that wrote them.

A model is the ResNet alone, since a checkpoint has no tokenizer; `decoder_of` reads the rest.
Source: kdexd/virtex, virtex/modules/visual_backbones.py, textual_heads.py and embedding.py, and
virtex/models/captioning.py (VirTex, section 3).
"""

from typing import Final

import torch

from unicl.errors import UserError
from unicl.towers.decoder import Decoder
from unicl.towers.weights import resnet, swin
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Rules, Unused, to_ours
from unicl.towers.weights.published import IMAGENET_MEAN, IMAGENET_STD, Published, assembled

NAME: Final = "VirTex"
_IMAGE: Final = "visual.cnn."
_NEEDED: Final = (
    "textual.embedding.words.weight",
    "textual.embedding.positions.weight",
    "textual.visual_projection.weight",
    "textual.output.weight",
)
_LAYER: Final = r"(backward_|)transformer\.layer\.(\d+)\."
_THEIRS: Final = r"\1textual.transformer.layers.\2."
_RULES: Final[Rules] = (
    Rule(r"projection\.(.+)", r"textual.visual_projection.\1"),
    Rule(r"embedding\.words\.weight", "textual.embedding.words.weight"),
    Rule(r"embedding\.places\.weight", "textual.embedding.positions.weight"),
    Rule(r"embedding\.norm\.(.+)", r"textual.embedding.layer_norm.\1"),
    Rule("bias", "textual.output.bias"),
    *(
        rule
        for ours, theirs in (("attention", "self_attn"), ("crossattention", "multihead_attn"))
        for rule in (
            *(
                Rule(rf"{_LAYER}{ours}\.self\.{name}\.(weight|bias)", rf"{_THEIRS}{theirs}.in_proj_\3#{name[0]}")
                for name in ("query", "key", "value")
            ),
            Rule(rf"{_LAYER}{ours}\.output\.dense\.(.+)", rf"{_THEIRS}{theirs}.out_proj.\3"),
        )
    ),
    Rule(rf"{_LAYER}attention\.output\.LayerNorm\.(.+)", rf"{_THEIRS}norm1.\3"),
    Rule(rf"{_LAYER}crossattention\.output\.LayerNorm\.(.+)", rf"{_THEIRS}norm2.\3"),
    Rule(rf"{_LAYER}output\.LayerNorm\.(.+)", rf"{_THEIRS}norm3.\3"),
    Rule(rf"{_LAYER}intermediate\.dense\.(.+)", rf"{_THEIRS}linear1.\3"),
    Rule(rf"{_LAYER}output\.dense\.(.+)", rf"{_THEIRS}linear2.\3"),
)
_SHARED: Final = (
    Unused(r"backward_textual\.(?!transformer).+", "the same for both directions"),
    Unused(r"textual\.output\.weight", "the embedding of words once more"),
)


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
    captions = Unused(r"(backward_)?textual\..+", "what writes captions, in words of a tokenizer that is not here")
    rules, unused = resnet.rules(_IMAGE), (captions, *resnet.unused(_IMAGE))
    return assembled(found.state, model, rules=rules, unused=unused, scale=False)


def decoder_of(found: Checkpoint, *, heads: int | None = None, causal: bool = True) -> Decoder:
    """The decoder of a checkpoint with its weights; what shapes do not tell are ``heads``, 64 wide each if not given,
    and ``causal``, False for masked words.

    Raises `UserError` if it has none, or naming each entry that is missing, not known or wrongly shaped.
    """
    theirs = {key: value for key, value in found.state.items() if not key.startswith(_IMAGE)}
    missing = [key for key in _NEEDED if key not in theirs]
    if missing:
        raise UserError(f"{found.place} has no decoder of VirTex's: {' and '.join(missing)} missing")
    words, places, projection, output = (theirs[key] for key in _NEEDED)
    if not torch.equal(words, output):
        raise UserError(f"{found.place}: {_NEEDED[-1]} is not the embedding of words, which a decoder here writes with")
    layers = {key.split(".")[3] for key in theirs if key.startswith("textual.transformer.layers.")}
    made = Decoder(
        size=len(words),
        pad=0,
        features=projection.shape[1],
        width=words.shape[1],
        context=len(places),
        layers=len(layers),
        heads=heads,
        causal=causal,
        both=any(key.startswith("backward_") for key in theirs),
    )
    state, _ = to_ours(theirs, wanted=made.state_dict(), rules=_RULES, unused=_SHARED, source=str(found.place))
    made.load_state_dict(state)
    return made.eval()
