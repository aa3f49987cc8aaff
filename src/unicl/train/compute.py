"""How a step is computed, not what: all of it may change when a run is resumed.

Numbers stay the same but for rounding, with two exceptions: batch normalisation sees chunks instead of batches, and
``scores="bf16"`` rounds embeddings.
"""

from dataclasses import dataclass
from typing import Literal

Chunk = int | Literal["auto"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSettings:
    """Where memory and time of a step go.

    * ``chunk``: rows that pass through the towers at once, by gradient caching; None is the whole batch, "auto" the
      most that the free memory holds.
    * ``parallel``: whether each process keeps a whole copy of the model ("ddp") or a part of it ("fsdp").
    * ``exchange``: whether a process gathers the smaller column of all ("gather"), or blocks of it travel ("ring").
    * ``keep_mb``: megabytes in which scores are kept for the backward pass instead of being computed again.
    * ``scores``: "bf16" rounds the embeddings before they are multiplied; sums stay in float32. A decoder then computes
      in bfloat16.
    * ``compile``: whether the towers go through torch.compile.
    * ``channels_last``: whether convolutional image towers keep channels innermost.
    * ``cache``: the folder in which features of a locked image tower are kept; "auto" is the run's own, where that
      can be and pays, "off" is none: see `unicl.train.features`.
    """

    chunk: Chunk = None
    parallel: Literal["ddp", "fsdp"] = "ddp"
    exchange: Literal["gather", "ring"] = "gather"
    keep_mb: int = 400
    scores: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    channels_last: bool = True
    cache: str = "auto"
