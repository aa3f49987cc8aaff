"""One step: a batch through the model, the objective over the rows of all ranks, and the gradient."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unicl.model import TwoTowers
from unicl.objective.plan import Tiling
from unicl.space import Batch
from unicl.train.compute import ComputeSettings
from unicl.train.ranks import Ranks, average_gradients

Precision = Literal["fp32", "bf16"]
Sync = Callable[[bool], AbstractContextManager[object]]
"""Around a backward pass: whether it is the step's last one for the parameters that it reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The loss of a step, and each term's own value by name: the same numbers on every rank."""

    loss: Tensor
    parts: dict[str, Tensor]


def tiling_of(compute: ComputeSettings) -> Tiling:
    """How the objective computes its scores."""
    return Tiling(keep=compute.keep_mb << 20, exchange=compute.exchange, operands=compute.scores)


def plain_step(
    model: TwoTowers,
    batch: Batch,
    *,
    ranks: Ranks,
    precision: Precision,
    compute: ComputeSettings = ComputeSettings(),
    sync: Sync | None = None,
) -> StepResult:
    """Forward and backward of a whole batch at once; leaves the mean gradient of all ranks in ``.grad``.

    Whoever gives ``sync`` averages the gradients over the ranks; see `unicl.train.parallel`.
    """
    with torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        columns = model(batch)
    # The objective stays in float32: a bfloat16 score near 100 is off by a quarter, a count above 256 by one.
    loss, parts = model.objective(columns, peers=ranks, tiling=tiling_of(compute))
    with nullcontext() if sync is None else sync(True):
        loss.backward()
    if sync is None:
        average_gradients(model.parameters(), ranks=ranks)
    return StepResult(loss=loss.detach(), parts=parts)
