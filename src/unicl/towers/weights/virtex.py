"""VirTex: a ResNet of torchvision that learned from captions, and the decoder that wrote them.

A checkpoint has no tokenizer: without the SentencePiece model that it learned with, a model is the ResNet alone.
Source: kdexd/virtex, virtex/modules/visual_backbones.py, textual_heads.py and embedding.py, virtex/models/captioning.py
(VirTex, section 3), and for words virtex/data/transforms.py and virtex/config.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import normalizers
from torch import Tensor

from unicl.data import tokens
from unicl.data.text import Tokenizer
from unicl.errors import UserError
from unicl.towers.decoder import Decoder
from unicl.towers.parts import ImageParts
from unicl.towers.weights import resnet, swin
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Rules, Unused, to_ours
from unicl.towers.weights.published import IMAGENET_MEAN, IMAGENET_STD, Published, assembled

NAME: Final = "VirTex"
TERM: Final = "captions"
"""The name of the term that the decoder becomes."""
_IMAGE: Final = "visual.cnn."
_PAD, _START, _END = 0, 1, 2
"""Numbers of the marks; that of padding is that of unknown words too."""
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
    """The image tower, without a head, and if there is a tokenizer what writes captions; the tokenizer is the
    checkpoint's, or the only one of the decoder's size beside it.

    Raises `UserError` naming what does not fit.
    """
    frame = swin.imagenet_frame(resnet.SIZE, interpolation="bilinear")
    image = resnet.settings(found, root=_IMAGE, head="none", frame=frame)
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
    rules, unused, tokenizer = resnet.rules(_IMAGE), resnet.unused(_IMAGE), _tokenizer(found)
    if tokenizer is None:
        return assembled(found.state, model, rules=rules, unused=(captions, *unused), scale=False)
    seen = {key: value for key, value in found.state.items() if key.startswith(_IMAGE)}
    return _writing(assembled(seen, model, rules=rules, unused=unused, scale=False), decoder_of(found), tokenizer)


def _writing(model: Published, decoder: Decoder, tokenizer: Tokenizer) -> Published:
    """The model with its decoder as a term, which reads places as they are."""
    assert model.image is not None
    term = {
        "kind": "caption",
        "name": TERM,
        "task": "captioning" if decoder.backward_transformer is None else "bicaptioning",
        "width": decoder.width,
        "layers": len(decoder.transformer.get_submodule("layer")._modules),
    }
    state = {f"objective.terms.{TERM}.decoder.{key}": value for key, value in decoder.state_dict().items()}
    return replace(
        model,
        image=replace(model.image, parts=ImageParts(head="none", unit=False)),
        state={**model.state, **state},
        tokenizer=tokenizer,
        terms=(term,),
        zero_shot={"ensemble": "likelihood"},
    )


def _tokenizer(found: Checkpoint) -> Tokenizer | None:
    """The one that is named, or else one beside the checkpoint that fits."""
    table, places = (found.state.get(key) for key in _NEEDED[:2])
    if found.tokenizer is not None:
        if table is None or places is None:
            raise UserError(f"{found.place} has no decoder of VirTex's, so that a tokenizer is of no use")
        return _read_pieces(found.tokenizer, table, context=len(places))
    if table is None or places is None:
        return None
    fitting = []
    for path in sorted((found.folder or found.place.parent).glob("*.model")):
        try:
            fitting.append(_read_pieces(path, table, context=len(places)))
        except UserError:  # a file that nobody named may be anything
            continue
    return fitting[0] if len(fitting) == 1 else None


def _read_pieces(path: Path, table: Tensor, *, context: int) -> Tokenizer:
    """A SentencePiece model as VirTex uses it: lower case without accents, a mark at either end."""
    if not path.is_file() or path.suffix != ".model":
        state = "is no SentencePiece model" if path.exists() else "does not exist"
        raise UserError(f"the tokenizer {str(path)!r} {state}; give the file that VirTex calls coco_10k.model")
    inner = tokens.read(path).inner
    plain: list[Any] = [normalizers.Lowercase(), normalizers.NFKD(), normalizers.StripAccents()]
    inner.normalizer = normalizers.Sequence(plain if inner.normalizer is None else [*plain, inner.normalizer])
    tokens.with_marks(inner, start=inner.id_to_token(_START), end=inner.id_to_token(_END))
    made = Tokenizer(inner, name=path.name, context=context, eos_id=_END, pad_id=_PAD)
    if made.vocab_size != len(table):
        raise UserError(
            f"the tokenizer {str(path)!r} has {made.vocab_size:,} entries, but the decoder writes with {len(table):,}; "
            "give the SentencePiece model that it learned with"
        )
    return made


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
