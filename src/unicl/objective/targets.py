"""Keys to targets: which scores should be high, and how much of a row's mass each gets.

Every function takes the keys of the rows and of the columns, so that a tile, one rank's rows or a whole batch
use the same function. A target is ``(I, T)``, not negative; rows and columns need not sum to one.
"""

import torch
from torch import Tensor

from unicl.space import Keys


def paired(rows: int, *, device: torch.device | None = None) -> Tensor:
    """The diagonal: image i belongs to text i and to no other (CLIP, figure 3)."""
    return torch.eye(rows, device=device)


def same_key(image_keys: Keys, text_keys: Keys) -> Tensor:
    """``T[i, j] = sum over a of e[i, a] f[j, a]``: the keys that image i and text j share, weighted.

    One key a row of weight 1 gives UniCL's TargetM (algorithm 1); unique keys give `paired`; keys of mixed
    labels give `affinity`. Weights are those of `Keys`.
    """
    known, inverse = torch.unique(torch.cat([image_keys.keys, text_keys.keys]), return_inverse=True)
    image_columns, text_columns = inverse[: len(image_keys.keys)], inverse[len(image_keys.keys) :]
    incidence_IK = image_keys.weights.new_zeros(image_keys.size, max(len(known), 1))
    incidence_IK.index_put_((image_keys.rows, image_columns), image_keys.weights, accumulate=True)
    target_IT = image_keys.weights.new_zeros(image_keys.size, text_keys.size)
    return target_IT.index_add_(1, text_keys.rows, incidence_IK[:, text_columns] * text_keys.weights)


def affinity(image_mix_IC: Tensor, text_mix_TC: Tensor) -> Tensor:
    """``A = M Mᵀ`` for labels mixed by MixUp or CutMix (UniCL's authors, microsoft/UniCL issue 12).

    Each argument holds the share of every class in a row; for one-hot rows this is `same_key`.
    """
    return image_mix_IC @ text_mix_TC.T
