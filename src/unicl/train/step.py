"""One step: a batch through the model, the objective over the rows of all ranks, and the gradient."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unicl.model import TwoTowers
from unicl.space import Batch
from unicl.train.ranks import Ranks, average_gradients, gather_columns

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The loss of a step, and each term's own value by name: the same numbers on every rank."""

    loss: Tensor
    parts: dict[str, Tensor]


def plain_step(model: TwoTowers, batch: Batch, *, ranks: Ranks, precision: Precision) -> StepResult:
    """Forward and backward of a whole batch at once; leaves the mean gradient of all ranks in ``.grad``."""
    with torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        columns = model(batch)
    # The objective stays in float32: a bfloat16 score near 100 is off by a quarter, a count above 256 by one.
    columns = gather_columns(columns, ranks=ranks, features=model.objective.reads_features)
    loss, parts = model.objective(columns)
    loss.backward()
    average_gradients(model.parameters(), ranks=ranks)
    return StepResult(loss=loss.detach(), parts=parts)
