"""A model made ready for training as its settings ask: the layout, type and compilation of its towers."""

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from unicl.errors import UserError
from unicl.model import TwoTowers
from unicl.train.compute import ComputeSettings
from unicl.train.lowbit import halve_weights
from unicl.train.optim import OptimSettings
from unicl.train.step import Precision

MOST: Final = 0.8
"""Share of a backbone's computing parameters in its blocks from which on only those are compiled."""


def prepare(
    model: TwoTowers, compute: ComputeSettings, *, optim: OptimSettings, precision: Precision
) -> tuple[str, ...]:
    """Prepare a model on its device, in place, before it is sharded and before the optimiser is made.

    Names and shapes of the state stay as they are. Returns what the user should know. Raises `UserError` if the
    settings do not go together.
    """
    sharded = compute.parallel == "fsdp"
    # A shard is flat memory, and has no layout of its own.
    model.image.lay_out(compute.channels_last, weights=not sharded)
    if model.text is not None:
        # With shards, a text is read by all processes together, which do not have the same texts.
        model.text.keeps = not sharded
    if optim.weights == "bf16":
        _check_halved(precision, sharded=sharded)
        for tower in _towers(model):
            halve_weights(tower)
    return _compile(model) if compute.compile else ()


def _check_halved(precision: Precision, *, sharded: bool) -> None:
    if precision != "bf16":
        raise UserError("weights in bf16 (optim.weights) need bf16 products as well: add --precision bf16")
    if sharded:
        raise UserError("weights in bf16 (optim.weights) do not go with --parallel fsdp; take one of the two")


def _compile(model: TwoTowers) -> tuple[str, ...]:
    """Compile the towers in place, block by block where blocks are alike, so that one compilation serves them all."""
    reason = _without_compiler(model.device)
    if reason:
        return (f"--compile has no effect here: torch.compile does not work on this machine ({reason})",)
    for block in _blocks(model.image.backbone):
        block.compile()
    if model.text is not None:
        for block in _blocks(model.text.backbone):
            # Batches and groups of them have all lengths.
            block.compile(dynamic=True)
    return ("the towers are being compiled; the first steps take longer",)


def _blocks(backbone: Any) -> list[nn.Module]:
    """The blocks of a transformer, of which the last may read one token only; else the whole backbone."""
    lists = (list(m) for m in backbone.modules() if isinstance(m, nn.ModuleList | nn.Sequential))
    alike = [blocks for blocks in lists if len(blocks) > 1 and len({type(b) for b in blocks[:-1]}) == 1]
    largest = max(alike, key=_size, default=[])
    return largest if _size(largest) > MOST * _size([backbone]) else [backbone]


def _size(modules: list[nn.Module]) -> int:
    """Parameters but those of tables of words, which are looked up and not computed with."""
    found = (m for module in modules for m in module.modules() if not isinstance(m, nn.Embedding))
    return sum(p.numel() for module in found for p in module.parameters(recurse=False))


def _without_compiler(device: torch.device) -> str:
    """Why nothing can be compiled for a device; empty if it can."""
    try:
        torch.compile(_probe)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        return str(error).strip().splitlines()[0][:200] or type(error).__name__
    return ""


def _probe(x: Tensor) -> Tensor:
    return (2 * x + 1).tanh()


def _towers(model: TwoTowers) -> Iterator[nn.Module]:
    yield model.image
    if model.text is not None:
        yield model.text
