"""From a tower's states to its embedding: pools over tokens, and heads to the shared width."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unicl.errors import UserError
from unicl.space import Embedding

HeadKind = Literal["linear", "affine", "mlp", "pooler", "gelu_half", "gelu_double", "none"]
Option = bool | int | float | str | tuple[int | float, ...] | None
"""A further argument of a model of timm's or transformers'."""

Pool = Literal["eos", "cls", "mean", "max", "last"]


def make_head(kind: HeadKind, *, features: int, width: int) -> nn.Module:
    """From ``features`` to ``width`` dimensions.

    "linear": one matrix without bias (CLIP, section 2.3); "affine": one with a bias (ALIGN, section 4.1); "mlp":
    linear, ReLU, linear (ConVIRT, section 2.2); "pooler": BERT's dense layer and tanh, then a matrix (BertCLIP);
    "gelu_half" and "gelu_double": two matrices around a GELU of half the sum of both widths, or of twice the
    embedding's (open_clip's heads of transformers and of timm models); "none": the features are the embedding.

    Raises `UserError` if there is no head and the widths differ.
    """
    match kind:
        case "linear":
            head = nn.Linear(features, width, bias=False)
            nn.init.normal_(head.weight, std=features**-0.5)
            return head
        case "affine":
            return nn.Linear(features, width)
        case "pooler":
            last = nn.Linear(features, width, bias=False)
            return nn.Sequential(nn.Linear(features, features), nn.Tanh(), last)
        case "gelu_half":
            inner = (features + width) // 2
            return nn.Sequential(nn.Linear(features, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False))
        case "gelu_double":
            return nn.Sequential(nn.Linear(features, 2 * width), nn.GELU(), nn.Linear(2 * width, width, bias=False))
        case "mlp":
            return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width))
        case "none" if features != width:
            raise UserError(
                f"a tower without a head gives its {features} features, but the embedding is {width} wide; "
                f"use the head 'linear' or an embedding width of {features}"
            )
        case "none":
            return nn.Identity()
        case _:
            raise UserError(f"unknown head {kind!r}; choose one of {', '.join(get_args(HeadKind))}")


def embed(features_NF: Tensor, head: nn.Module) -> Embedding:
    """Features through the head to unit length, in float32 at least, whatever autocast does to the head."""
    projected = head(features_NF)
    exact = projected.to(torch.promote_types(projected.dtype, torch.float32))
    return Embedding(whole=nn.functional.normalize(exact, dim=-1), features=features_NF)


def pool_tokens(states_ULF: Tensor, *, pool: Pool, tokens: Tensor, mask: Tensor, eos_id: int) -> Tensor:
    """One vector ``(U, F)`` a text, from real tokens only.

    "eos": the first end mark, found by its id, so that a larger vocabulary cannot move it (a text without one gives
    its last token); "cls": the first token; "last": the last real token; "mean", "max": over the real tokens.
    """
    match pool:
        case "cls" | "eos" | "last":
            return _at(states_ULF, places_of(pool, tokens=tokens, mask=mask, eos_id=eos_id))
        case "mean":
            weights = mask.to(states_ULF.dtype)[..., None]
            return (states_ULF * weights).sum(1) / weights.sum(1).clamp(min=1)
        case "max":
            return states_ULF.masked_fill(~mask[..., None], float("-inf")).amax(1)


def places_of(pool: Literal["eos", "cls", "last"], *, tokens: Tensor, mask: Tensor, eos_id: int) -> Tensor:
    """``(U,)``: the token that a pool of one token reads, in each text."""
    last = (mask.sum(1) - 1).clamp(min=0)
    match pool:
        case "cls":
            return torch.zeros_like(last)
        case "last":
            return last
        case "eos":
            ends = (tokens == eos_id) & mask
            return torch.where(ends.any(1), ends.int().argmax(1), last)


def _at(states_ULF: Tensor, places: Tensor) -> Tensor:
    return states_ULF[torch.arange(states_ULF.shape[0], device=states_ULF.device), places]
