"""Weights of timm's and transformers' towers under flax's names and shapes, as big_vision's .npz files hold them."""

from typing import Any

import numpy as np
from torch import Tensor

Arrays = dict[str, np.ndarray[Any, Any]]


def image_arrays(model: Any, *, root: str, numbers: tuple[int, int, int] = (0, 1, 0)) -> Arrays:
    """A timm vision transformer; ``numbers`` are those of attention, of the second norm and of the MLP."""
    state = {key: value.detach() for key, value in model.state_dict().items()}
    heads = model.blocks[0].attn.num_heads
    found = {
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        **_norm(state, "norm", "Transformer/encoder_norm"),
    }
    if "cls_token" in state:
        found["cls"] = state["cls_token"]
    place = "Transformer/posembed_input/pos_embedding" if numbers[0] else "pos_embedding"
    found[place] = state["pos_embed"]
    for block in range(len(model.blocks)):
        ours, theirs = f"blocks.{block}", f"Transformer/encoderblock_{block}"
        found |= _block(state, ours, theirs, numbers)
        rows = zip(
            "qkv", state[f"{ours}.attn.qkv.weight"].chunk(3), state[f"{ours}.attn.qkv.bias"].chunk(3), strict=True
        )
        weights = {letter: (weight, bias) for letter, weight, bias in rows}
        proj = (state[f"{ours}.attn.proj.weight"], state[f"{ours}.attn.proj.bias"])
        found |= _attention(weights, proj, f"{theirs}/MultiHeadDotProductAttention_{numbers[0]}", heads=heads)
    if "attn_pool.latent" in state:
        found |= _pool(state, heads=heads)
    return {f"{root}{key}": value.contiguous().numpy() for key, value in found.items()}


def text_arrays(model: Any, *, root: str, numbers: tuple[int, int, int] = (0, 1, 0)) -> Arrays:
    """transformers' SiglipTextModel, its head included."""
    state = {key: value.detach() for key, value in model.state_dict().items()}
    heads = model.config.num_attention_heads
    found = {
        "Embed_0/embedding": state["embeddings.token_embedding.weight"],
        "pos_embedding": state["embeddings.position_embedding.weight"][None],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
        **_norm(state, "final_layer_norm", "Encoder_0/encoder_norm"),
    }
    for layer in range(model.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{layer}", f"Encoder_0/encoderblock_{layer}"
        found |= _norm(state, f"{ours}.layer_norm1", f"{theirs}/LayerNorm_0")
        found |= _norm(state, f"{ours}.layer_norm2", f"{theirs}/LayerNorm_{numbers[1]}")
        found |= _mlp(state, f"{ours}.mlp", f"{theirs}/MlpBlock_{numbers[2]}")
        inner = f"{ours}.self_attn"
        weights = {k: (state[f"{inner}.{k}_proj.weight"], state[f"{inner}.{k}_proj.bias"]) for k in "qkv"}
        proj = (state[f"{inner}.out_proj.weight"], state[f"{inner}.out_proj.bias"])
        found |= _attention(weights, proj, f"{theirs}/MultiHeadDotProductAttention_{numbers[0]}", heads=heads)
    return {f"{root}{key}": value.contiguous().numpy() for key, value in found.items()}


def bert_arrays(model: Any, *, root: str) -> Arrays:
    """transformers' BertModel without its pooler, in flaxformer's names."""
    state = {key: value.detach() for key, value in model.state_dict().items()}
    tables = {"token": "word_embeddings", "position": "position_embeddings", "segment": "token_type_embeddings"}
    found = {
        f"embedder/embedders_{kind}_ids/embedding": state[f"embeddings.{name}.weight"] for kind, name in tables.items()
    }
    found |= _norm(state, "embeddings.LayerNorm", "layer_norm")
    for layer in range(model.config.num_hidden_layers):
        ours, theirs = f"encoder.layer.{layer}", f"encoder_block/layer_sequence/layers_{layer}"
        places = {
            "attention.output.dense": "attention_block/dense_layer",
            "intermediate.dense": "mlp_block/mlp/dense_layer",
            "output.dense": "mlp_block/dense_layer",
        } | {f"attention.self.{k}": f"attention_block/attention_layer/{k}" for k in ("query", "key", "value")}
        for name, place in places.items():
            found[f"{theirs}/{place}/kernel"] = state[f"{ours}.{name}.weight"].T
            found[f"{theirs}/{place}/bias"] = state[f"{ours}.{name}.bias"]
        found |= _norm(state, f"{ours}.attention.output.LayerNorm", f"{theirs}/attention_block/layer_norm")
        found |= _norm(state, f"{ours}.output.LayerNorm", f"{theirs}/mlp_block/layer_norm")
    return {f"{root}BertEncoder_0/{key}": value.contiguous().numpy() for key, value in found.items()}


def scanned(arrays: Arrays) -> Arrays:
    """The blocks stacked into one, as models are trained with a scan."""
    numbers = {key: key.split("encoderblock_")[1].split("/")[0] for key in arrays if "encoderblock_" in key}
    found = {key: value for key, value in arrays.items() if key not in numbers}
    for key in numbers:
        name = key.replace(f"encoderblock_{numbers[key]}", "encoderblock")
        depth = max(map(int, numbers.values())) + 1
        found[name] = np.stack([arrays[name.replace("encoderblock/", f"encoderblock_{k}/")] for k in range(depth)])
    return found


def _block(state: dict[str, Tensor], ours: str, theirs: str, numbers: tuple[int, int, int]) -> dict[str, Tensor]:
    return {
        **_norm(state, f"{ours}.norm1", f"{theirs}/LayerNorm_0"),
        **_norm(state, f"{ours}.norm2", f"{theirs}/LayerNorm_{numbers[1]}"),
        **_mlp(state, f"{ours}.mlp", f"{theirs}/MlpBlock_{numbers[2]}"),
    }


def _pool(state: dict[str, Tensor], *, heads: int) -> dict[str, Tensor]:
    ours = "attn_pool"
    keys, values = state[f"{ours}.kv.weight"].chunk(2)
    key, value = state[f"{ours}.kv.bias"].chunk(2)
    weights = {"q": (state[f"{ours}.q.weight"], state[f"{ours}.q.bias"]), "k": (keys, key), "v": (values, value)}
    proj = (state[f"{ours}.proj.weight"], state[f"{ours}.proj.bias"])
    return {
        "MAPHead_0/probe": state[f"{ours}.latent"],
        **_attention(weights, proj, "MAPHead_0/MultiHeadDotProductAttention_0", heads=heads),
        **_norm(state, f"{ours}.norm", "MAPHead_0/LayerNorm_0"),
        **_mlp(state, f"{ours}.mlp", "MAPHead_0/MlpBlock_0"),
    }


def _attention(
    weights: dict[str, tuple[Tensor, Tensor]], proj: tuple[Tensor, Tensor], place: str, *, heads: int
) -> dict[str, Tensor]:
    width = proj[0].shape[0]
    found = {f"{place}/out/kernel": proj[0].T.reshape(heads, -1, width), f"{place}/out/bias": proj[1]}
    for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
        weight, bias = weights[letter]
        found[f"{place}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
        found[f"{place}/{name}/bias"] = bias.reshape(heads, -1)
    return found


def _mlp(state: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    found = {}
    for number in (0, 1):
        found[f"{theirs}/Dense_{number}/kernel"] = state[f"{ours}.fc{number + 1}.weight"].T
        found[f"{theirs}/Dense_{number}/bias"] = state[f"{ours}.fc{number + 1}.bias"]
    return found


def _norm(state: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{theirs}/scale": state[f"{ours}.weight"], f"{theirs}/bias": state[f"{ours}.bias"]}
