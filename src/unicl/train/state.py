"""What resuming needs beside a model folder, as a distributed checkpoint: any number of processes may read it.

Every process writes its part (`torch.distributed.checkpoint`). States of the optimiser are named by their parameter,
so that they are found again however parameters are grouped, sharded or shared out.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from unicl.train.optim import take_step
from unicl.train.parallel import gathered, place
from unicl.train.ranks import Ranks

STATE: Final = "state"
"""The folder of a checkpoint that holds it."""


def save_state(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, *, weights: bool, ranks: Ranks
) -> None:
    """Write the optimiser's states, and the model's ``weights`` where its folder does not hold them.

    Raises RuntimeError on all processes if one cannot write.
    """
    state = _states(model, optimiser)
    if weights:
        state |= {f"model.{name}": value for name, value in model.state_dict().items()}
    try:
        with _alone():
            save(state, storage_writer=FileSystemWriter(folder), process_group=ranks.patient, no_dist=ranks.size == 1)
    except CheckpointException as error:
        raise RuntimeError(_reasons(error)) from error


def load_state(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, *, weights: bool, ranks: Ranks
) -> None:
    """Read what `save_state` wrote into the optimiser and, with ``weights``, the model.

    Raises RuntimeError, ValueError or OSError if it is not there or does not fit.
    """
    reader = FileSystemReader(folder)
    known = reader.read_metadata().state_dict_metadata
    _prepare(model, optimiser, known=known)
    state = _states(model, optimiser)
    if weights:
        state |= {f"model.{name}": value for name, value in model.state_dict().items()}
    missing = sorted(state.keys() ^ known.keys())
    if missing:
        raise ValueError(f"its state and this run's differ in {', '.join(missing[:3])} ({len(missing)} in all)")
    _read(state, reader, ranks=ranks)


def keep_states(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, *, ranks: Ranks) -> None:
    """Read what `save_state` wrote of the parameters that still learn and have their old shapes; others begin anew.

    Raises as `load_state` does.
    """
    reader = FileSystemReader(folder)
    shapes = {
        name: tuple(each.size)
        for name, each in reader.read_metadata().state_dict_metadata.items()
        if hasattr(each, "size")
    }
    fitting: dict[str, None] = {}
    for name, parameter in model.named_parameters():
        own = [key for key in shapes if key.rpartition(".")[0] == f"optimiser.{name}"]
        if parameter.requires_grad and all(not shapes[key] or shapes[key] == tuple(parameter.shape) for key in own):
            fitting |= dict.fromkeys(own)
    _prepare(model, optimiser, known=fitting)
    state = {name: value for name, value in _states(model, optimiser).items() if name in fitting}
    _read(state, reader, ranks=ranks)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights that go on learning, in whole, where the model's folder has their average; else nothing."""
    reader = FileSystemReader(folder)
    known = reader.read_metadata().state_dict_metadata
    state = {
        name: torch.empty(each.size, dtype=each.properties.dtype)
        for name, each in known.items()
        if name.startswith("model.") and isinstance(each, TensorStorageMetadata)
    }
    if state:
        _read(state, reader, ranks=Ranks())
    return {name.removeprefix("model."): value for name, value in state.items()}


def whole_state(state: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All tensors of a state in whole, on processes that ``keep`` them; to be called on all."""
    made = ((name, gathered(value)) for name, value in state.items())
    return {name: value for name, value in made if keep}


def load_weights(model: nn.Module, whole: Mapping[str, Tensor]) -> None:
    """Give a model, which may be in parts, the weights of a whole one; raises RuntimeError if they do not fit."""
    own = model.state_dict()
    model.load_state_dict({k: place(v, like=own[k]) if k in own else v for k, v in whole.items()})


def _read(state: dict[str, Any], reader: FileSystemReader, *, ranks: Ranks) -> None:
    try:
        with _alone():
            load(state, storage_reader=reader, process_group=ranks.patient, no_dist=ranks.size == 1)
    except CheckpointException as error:
        raise RuntimeError(_reasons(error)) from error


def _states(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        f"optimiser.{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def _prepare(model: nn.Module, optimiser: torch.optim.Optimizer, *, known: Mapping[str, Any]) -> None:
    """States to read into, for the parameters that have some in the checkpoint: a step that changes no weight."""
    saved = {name.removeprefix("optimiser.").rpartition(".")[0] for name in known if name.startswith("optimiser.")}
    for name, parameter in model.named_parameters():
        parameter.grad = torch.zeros_like(parameter) if name in saved and parameter.requires_grad else None
    take_step(optimiser, rate=0.0, seed=0)
    optimiser.zero_grad(set_to_none=True)


@contextmanager
def _alone() -> Iterator[None]:
    """One process is a number of processes like any other, which torch warns about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _reasons(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
