"""Vision and text transformers in flax's names (big_vision, vision_transformer): sizes from shapes, rules of names.

Both projects write flat .npz files with "/" between names. vision_transformer numbers the parts of a block through
(LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3), big_vision by kind (LayerNorm_0,
MultiHeadDotProductAttention_0, LayerNorm_1, MlpBlock_0). Sources: google-research/vision_transformer,
vit_jax/models_vit.py and models_lit.py; google-research/big_vision, big_vision/models/vit.py and
models/proj/image_text/text_transformer.py.
"""

import math
import re
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.towers.heads import HeadKind, Option
from unicl.towers.image import ImageSettings
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import TURNED, Change, Rule, Rules

FRAME: Final = Frame(mode="squash", interpolation="bilinear")
"""Every public LiT scales pictures to a square, whatever their shape (LiT, appendix)."""


def _in(value: Tensor, like: Tensor) -> Tensor:
    """``(F, H, E)`` or ``(F, H E)`` of theirs to ``(H E, F)``."""
    return value.reshape(like.shape[1], -1).T if value.numel() == like.numel() else value


def _out(value: Tensor, like: Tensor) -> Tensor:
    """``(H, E, F)`` or ``(H E, F)`` of theirs to ``(F, H E)``."""
    return value.reshape(-1, like.shape[0]).T if value.numel() == like.numel() else value


def _kernel(value: Tensor, _like: Tensor) -> Tensor:
    return value.permute(3, 2, 0, 1) if value.ndim == 4 else value


IN: Final = Change(_in, lambda value: value.T)
"""The matrix before attention's heads, which flax keeps with the heads apart."""
OUT: Final = Change(_out, lambda value: value.T)
"""The matrix behind attention's heads."""
FLAT: Final = Change(
    lambda value, like: value.reshape(like.shape) if value.numel() == like.numel() else value, lambda value: value
)
"""A bias that flax keeps with the heads apart, or a table with one row in front."""
CONV: Final = Change(_kernel, lambda value: value.permute(2, 3, 1, 0))
"""A kernel whose channels come last."""


def unrolled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Blocks that were trained as one scanned block, apart: "encoderblock/" becomes "encoderblock_0/" and so on."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if "/encoderblock/" not in key or not value.ndim:
            found[key] = value
            continue
        for number, part in enumerate(value):
            found[key.replace("/encoderblock/", f"/encoderblock_{number}/")] = part
    return found


def image_settings(found: Checkpoint, *, root: str, head: HeadKind) -> ImageSettings:
    """timm's vision transformer of the sizes that the shapes below ``root`` tell.

    Raises `UserError` naming what is missing, or if the positions make no square.
    """
    kernel = found.shape(f"{root}embedding/kernel")
    if len(kernel) != 4:
        raise UserError(f"{found.place} does not fit: {root}embedding/kernel is {kernel}, not (P, P, 3, F)")
    patch, width = kernel[0], kernel[3]
    token, mapped = f"{root}cls" in found.state, found.any(f"{root}MAPHead_0/")
    places = found.shape(_positions(found, root))[-2]
    if not token and not _square(places):
        raise UserError(f"{found.place} does not fit: {places} positions make no square, and {root}cls is missing")
    side = math.isqrt(places - (1 if token and not _square(places) else 0))
    block = f"{root}Transformer/encoderblock_0"
    heads = heads_of(found, block, width=width, number=numbers_of(found, root)[0])
    inner = found.shape(f"{block}/MlpBlock_{numbers_of(found, root)[2]}/Dense_0/kernel")[-1]
    options: dict[str, Option] = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": found.count(rf"{root}Transformer/encoderblock_(\d+)/"),
        "num_heads": heads,
        "mlp_ratio": inner / width,
        "act_layer": "gelu_tanh",
        "class_token": token,
        # A token that was added behind the positions has none of its own.
        "no_embed_class": token and _square(places),
        "fc_norm": False,
        "global_pool": "map" if mapped else "token" if token else "avg",
    }
    return ImageSettings(
        name="vit_base_patch16_224",
        size=side * patch,
        options=options,
        frame=FRAME,
        head=head,
    )


def image_rules(found: Checkpoint, *, root: str) -> Rules:
    """From our names of such a tower to those below ``root``; an affine head is "head"."""
    attention, second, inner = numbers_of(found, root)
    ours = r"image\.backbone\.blocks\.(\d+)"
    theirs = rf"{root}Transformer/encoderblock_\1"
    heads = rf"{theirs}/MultiHeadDotProductAttention_{attention}"
    pool, pooled = r"image\.backbone\.attn_pool", f"{root}MAPHead_0"
    query = f"{pooled}/MultiHeadDotProductAttention_0"
    return (
        Rule(r"image\.backbone\.patch_embed\.proj\.weight", f"{root}embedding/kernel", CONV),
        Rule(r"image\.backbone\.patch_embed\.proj\.bias", f"{root}embedding/bias"),
        Rule(r"image\.backbone\.cls_token", f"{root}cls"),
        Rule(r"image\.backbone\.pos_embed", _positions(found, root)),
        *_norm(r"image\.backbone\.norm", f"{root}Transformer/encoder_norm"),
        *_norm(rf"{ours}\.norm1", f"{theirs}/LayerNorm_0"),
        *_norm(rf"{ours}\.norm2", f"{theirs}/LayerNorm_{second}"),
        Rule(rf"{ours}\.attn\.qkv\.weight", f"{heads}/{{query,key,value}}/kernel", IN),
        Rule(rf"{ours}\.attn\.qkv\.bias", f"{heads}/{{query,key,value}}/bias", FLAT),
        *_behind(rf"{ours}\.attn\.proj", f"{heads}/out"),
        *_mlp(rf"{ours}\.mlp", f"{theirs}/MlpBlock_{inner}"),
        Rule(rf"{pool}\.latent", f"{pooled}/probe"),
        Rule(rf"{pool}\.q\.weight", f"{query}/query/kernel", IN),
        Rule(rf"{pool}\.q\.bias", f"{query}/query/bias", FLAT),
        Rule(rf"{pool}\.kv\.weight", f"{query}/{{key,value}}/kernel", IN),
        Rule(rf"{pool}\.kv\.bias", f"{query}/{{key,value}}/bias", FLAT),
        *_behind(rf"{pool}\.proj", f"{query}/out"),
        *_norm(rf"{pool}\.norm", f"{pooled}/LayerNorm_0"),
        *_mlp(rf"{pool}\.mlp", f"{pooled}/MlpBlock_0"),
        *dense(r"image\.head", f"{root}head"),
    )


def text_rules(found: Checkpoint, *, root: str) -> Rules:
    """From our names of a "siglip" text tower to those below ``root``."""
    attention, second, inner = numbers_of(found, root)
    # Some versions of transformers keep the text model one level deeper.
    tower = r"text\.backbone\.(?:text_model\.)?"
    ours, theirs = rf"{tower}encoder\.layers\.(\d+)", rf"{root}Encoder_0/encoderblock_\1"
    heads = rf"{theirs}/MultiHeadDotProductAttention_{attention}"
    thirds = [(letter, name) for letter, name in (("q", "query"), ("k", "key"), ("v", "value"))]
    return (
        Rule(rf"{tower}embeddings\.token_embedding\.weight", f"{root}Embed_0/embedding"),
        Rule(rf"{tower}embeddings\.position_embedding\.weight", f"{root}pos_embedding", FLAT),
        *(Rule(rf"{ours}\.self_attn\.{letter}_proj\.weight", f"{heads}/{name}/kernel", IN) for letter, name in thirds),
        *(Rule(rf"{ours}\.self_attn\.{letter}_proj\.bias", f"{heads}/{name}/bias", FLAT) for letter, name in thirds),
        *_behind(rf"{ours}\.self_attn\.out_proj", f"{heads}/out"),
        *_norm(rf"{ours}\.layer_norm1", f"{theirs}/LayerNorm_0"),
        *_norm(rf"{ours}\.layer_norm2", f"{theirs}/LayerNorm_{second}"),
        *_mlp(rf"{ours}\.mlp", f"{theirs}/MlpBlock_{inner}"),
        *_norm(rf"{tower}final_layer_norm", f"{root}Encoder_0/encoder_norm"),
        *dense(r"text\.head", f"{root}head"),
    )


def bert_rules(*, root: str) -> Rules:
    """From our names of a "bert" text tower to flaxformer's BertEncoder below ``root``."""
    encoder = f"{root}BertEncoder_0"
    ours = r"text\.backbone\.encoder\.layer\.(\d+)"
    theirs = rf"{encoder}/encoder_block/layer_sequence/layers_\1"
    table = r"text\.backbone\.embeddings"
    kinds = (("word_embeddings", "token"), ("position_embeddings", "position"), ("token_type_embeddings", "segment"))
    first = rf"{theirs}/attention_block/attention_layer/\2"
    return (
        *(
            Rule(rf"{table}\.{name}\.weight", f"{encoder}/embedder/embedders_{kind}_ids/embedding")
            for name, kind in kinds
        ),
        *_norm(rf"{table}\.LayerNorm", f"{encoder}/layer_norm"),
        Rule(rf"{ours}\.attention\.self\.(query|key|value)\.weight", f"{first}/kernel", IN),
        Rule(rf"{ours}\.attention\.self\.(query|key|value)\.bias", f"{first}/bias", FLAT),
        *_behind(rf"{ours}\.attention\.output\.dense", f"{theirs}/attention_block/dense_layer"),
        *_norm(rf"{ours}\.attention\.output\.LayerNorm", f"{theirs}/attention_block/layer_norm"),
        *dense(rf"{ours}\.intermediate\.dense", f"{theirs}/mlp_block/mlp/dense_layer"),
        *dense(rf"{ours}\.output\.dense", f"{theirs}/mlp_block/dense_layer"),
        *_norm(rf"{ours}\.output\.LayerNorm", f"{theirs}/mlp_block/layer_norm"),
        *dense(r"text\.head", f"{root}head"),
    )


def dense(ours: str, theirs: str) -> Rules:
    """A matrix with a bias."""
    return Rule(rf"{ours}\.weight", f"{theirs}/kernel", TURNED), Rule(rf"{ours}\.bias", f"{theirs}/bias")


def heads_of(found: Checkpoint, block: str, *, width: int, number: int) -> int:
    """The heads of attention in a block, which flax keeps apart; raises `UserError` if they are not ``width`` wide."""
    name = f"{block}/MultiHeadDotProductAttention_{number}/query/kernel"
    shape = found.shape(name)
    if len(shape) != 3 or shape[0] != width or shape[1] * shape[2] != width:
        raise UserError(f"{found.place} does not fit: {name} is {shape}, not ({width}, heads, {width} / heads)")
    return shape[1]


def numbers_of(found: Checkpoint, root: str) -> tuple[int, int, int]:
    """The numbers of attention, of the second norm and of the MLP in the blocks below ``root``."""
    through = found.any(rf"{re.escape(root)}(Transformer|Encoder_0)/encoderblock_\d+/(MlpBlock_3|LayerNorm_2)/")
    return (1, 2, 3) if through else (0, 1, 0)


def _positions(found: Checkpoint, root: str) -> str:
    """Where the positions are: in a module, in the encoder (before 2022), or beside it."""
    places = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding")
    return next((root + place for place in places if root + place in found.state), f"{root}pos_embedding")


def _square(number: int) -> bool:
    return math.isqrt(max(number, 0)) ** 2 == number


def _norm(ours: str, theirs: str) -> Rules:
    return Rule(rf"{ours}\.weight", f"{theirs}/scale"), Rule(rf"{ours}\.bias", f"{theirs}/bias")


def _behind(ours: str, theirs: str) -> Rules:
    return Rule(rf"{ours}\.weight", f"{theirs}/kernel", OUT), Rule(rf"{ours}\.bias", f"{theirs}/bias")


def _mlp(ours: str, theirs: str) -> Rules:
    found: list[Rule] = []
    for number in (1, 2):
        found += dense(rf"{ours}\.fc{number}", f"{theirs}/Dense_{number - 1}")
    return tuple(found)
