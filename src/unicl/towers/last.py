"""The last block of a transformer at the one place that is read: the same numbers with less work.

Of a block's products, all but those of keys and values are needed only where the output is read, which is ten twelfths
of the block; for CLIP's ViT-B/32 and its texts that is 7 % of a training step.
"""

from typing import Any, Final

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


class FirstTokenBlock(nn.Module):
    """A timm block, its weights under the same names, that answers for its first token only.

    ``(N, P, F)`` to ``(N, 1, F)``.
    """

    norm1: nn.Module
    attn: Any
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def __init__(self, block: Any) -> None:
        super().__init__()
        for name, part in block.named_children():
            self.add_module(name, part)

    def forward(self, states_NPF: Tensor) -> Tensor:
        first = states_NPF[:, :1]
        first = first + self.drop_path1(self.ls1(self._attend(self.norm1(states_NPF))))
        changed: Tensor = first + self.drop_path2(self.ls2(self.mlp(self.norm2(first))))
        return changed

    def _attend(self, states_NPF: Tensor) -> Tensor:
        attention = self.attn
        if type(attention.qkv) is not nn.Linear:
            # An adapter sits on the matrix, and only a call of the whole layer goes through it.
            whole: Tensor = attention(states_NPF)
            return whole[:, :1]
        width, heads, size = attention.proj.in_features, attention.num_heads, states_NPF.shape[:2]
        weight, bias = attention.qkv.weight, attention.qkv.bias
        first, both = (None, None) if bias is None else (bias[:width], bias[width:])
        query = linear(states_NPF[:, :1], weight[:width], first).view(size[0], 1, heads, -1).transpose(1, 2)
        pairs = linear(states_NPF, weight[width:], both).view(*size, 2, heads, -1)
        key, value = pairs.permute(2, 0, 3, 1, 4).unbind(0)
        drop = attention.attn_drop.p if self.training else 0.0
        mixed = scaled_dot_product_attention(attention.q_norm(query), attention.k_norm(key), value, dropout_p=drop)
        projected: Tensor = attention.proj_drop(attention.proj(mixed.transpose(1, 2).flatten(2)))
        return projected


def read_first_token(model: Any) -> None:
    """Let a timm vision transformer that pools its class token end on a `FirstTokenBlock`; leave other models alone."""
    if type(model) is not VisionTransformer or model.global_pool != "token" or model.attn_pool is not None:
        return
    block = model.blocks[-1]
    attention: Any = getattr(block, "attn", None)
    if type(block) is not Block or type(attention) is not Attention:
        return
    plain = isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity)
    if plain and getattr(attention, "gate", None) is None:
        model.blocks[-1] = FirstTokenBlock(block)


def clip_text_at(model: Any, tokens: Tensor, *, places: Tensor) -> Tensor:
    """``(U, F)``: what transformers' CLIPTextModel says at one place of each text, ``places (U,)``."""
    # Some versions of transformers keep the text model one level deeper.
    inner: Final = getattr(model, "text_model", model)
    states = inner.embeddings(input_ids=tokens)
    *layers, last = inner.encoder.layers
    for layer in layers:
        states = _tensor(layer(states, None, is_causal=True))
    normed: Tensor = inner.final_layer_norm(_clip_layer_at(last, states, places))
    return normed


def _clip_layer_at(layer: Any, states_ULF: Tensor, places: Tensor) -> Tensor:
    rows = torch.arange(places.shape[0], device=places.device)
    attention = layer.self_attn
    normed = layer.layer_norm1(states_ULF)
    query = _in_heads(attention.q_proj(normed[rows, places])[:, None], attention)
    key, value = (_in_heads(part(normed), attention) for part in (attention.k_proj, attention.v_proj))
    seen = torch.arange(states_ULF.shape[1], device=places.device) <= places[:, None, None, None]
    drop = attention.dropout if layer.training else 0.0
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=drop)
    state = states_ULF[rows, places] + attention.out_proj(mixed.transpose(1, 2).flatten(2)[:, 0])
    changed: Tensor = state + layer.mlp(layer.layer_norm2(state))
    return changed


def _in_heads(states_ULF: Tensor, attention: Any) -> Tensor:
    return states_ULF.view(*states_ULF.shape[:2], int(attention.num_heads), -1).transpose(1, 2)


def _tensor(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
