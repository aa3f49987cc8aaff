"""Files of weights from anywhere, read without running their code: tensors, configuration, and where they lie."""

import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from unicl.errors import UserError

IN_FOLDER: Final = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
CONFIGS: Final = ("config.json", "open_clip_config.json")
SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin", ".npz", ".ckpt", ".tar")
_CONTAINERS: Final = ("state_dict", "model", "model_state_dict", "module", "teacher", "net")
_WRAPPERS: Final = ("module.", "_orig_mod.")
_INDEXES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_NO_WEIGHTS: Final = re.compile(r"^(optimi[sz]er|scheduler|scaler|training_args|rng_state|random_states)|optim_states")
"""What trainers write beside the weights."""
_SCRIPTED: Final = ("TorchScript", "torch.jit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a file or folder holds.

    ``state`` are its tensors in float32 (integers stay), without the "module." and "_orig_mod." of wrappers;
    ``config`` its config.json or open_clip_config.json, empty if there is none; ``more`` what else a training
    checkpoint says in plain values; ``folder`` where tokenizer files may lie, None for a single file; ``scripted`` if
    it was a TorchScript archive; ``tokenizer`` a file of one that was named beside it.
    """

    place: Path
    state: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    scripted: bool = False
    tokenizer: Path | None = None

    def has(self, *names: str) -> bool:
        """Whether all of these tensors are there."""
        return all(name in self.state for name in names)

    def any(self, pattern: str) -> bool:
        """Whether the beginning of any name matches."""
        found = re.compile(pattern)
        return any(found.match(key) for key in self.state)

    def count(self, pattern: str) -> int:
        """How many blocks: one more than the largest number that the first group of ``pattern`` matches; 0 if none."""
        found = re.compile(pattern)
        numbers = [int(match.group(1)) for key in self.state if (match := found.match(key))]
        return max(numbers, default=-1) + 1

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; raises `UserError` naming it if it is missing."""
        if name not in self.state:
            raise UserError(f"{self.place} does not fit the layout it looks like: {name} is missing")
        return tuple(self.state[name].shape)


def open_checkpoint(place: Path) -> Checkpoint:
    """Read a file, or a folder with one.

    Raises `UserError` if there is none, it is cut off, it is no checkpoint, or it is a pickle that wants to run code.
    """
    file = _file(place)
    content, scripted = _content(file)
    state, more = _tensors(content, file)
    folder = place if place.is_dir() else None
    return Checkpoint(
        place=place,
        state={key: _plain(value) for key, value in _unwrapped(state).items()},
        config=_config(place, file=file) if folder else {},
        more=more,
        folder=folder,
        scripted=scripted,
    )


def _file(place: Path) -> Path:
    """The one file that holds, or lists, the weights."""
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"no weights at {place}: give a file, a folder, 'hub', 'package:NAME' or 'random'")
    known = [place / name for name in (*_INDEXES[:1], *IN_FOLDER, *_INDEXES[1:]) if (place / name).is_file()]
    if known:
        return known[0]
    others = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES and path.is_file())
    found = [path for path in others if not _NO_WEIGHTS.search(path.name)]
    if len(found) > 1:
        raise UserError(
            f"the folder {place} holds {', '.join(path.name for path in found[:4])}; name the file you mean"
        )
    if not found:
        only = f", only {', '.join(path.name for path in others[:4])}" if others else ""
        raise UserError(f"the folder {place} holds no weights{only}; wanted {', '.join(IN_FOLDER)} or a .pt file")
    return found[0]


def _content(file: Path) -> tuple[Any, bool]:
    """What a file holds, and whether it was a TorchScript archive."""
    try:
        if file.name in _INDEXES:
            return _shards(file), False
        if file.suffix == ".safetensors":
            return load_file(file), False
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return {key: _from_numpy(np.asarray(arrays[key])) for key in arrays.files}, False
        with _without_warnings():
            return torch.load(file, map_location="cpu", weights_only=True), False
    except UserError:
        raise
    except Exception as error:
        if not any(word in str(error) for word in _SCRIPTED):
            raise UserError(_unreadable(file, error)) from error
    return _scripted(file), True


def _shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index lists; each must be where it is said to be."""
    places: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    state: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise UserError(f"{index} lists {shard!r}, which is not in its folder")
        state |= _tensors(_content(index.parent / shard)[0], index.parent / shard)[0]
    lost, extra = sorted(set(places) - set(state)), sorted(set(state) - set(places))
    if lost or extra:
        raise UserError(f"{index} and its files differ in {', '.join([*lost, *extra][:4])}; fetch all of them again")
    return state


def _from_numpy(array: Any) -> Tensor:
    if array.dtype == np.dtype("V2"):
        # numpy has no bfloat16 and keeps the two bytes as they are.
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _scripted(file: Path) -> Any:
    try:
        with _without_warnings():
            return torch.jit.load(file, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise UserError(_unreadable(file, error)) from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without torch's advice about kinds of files that others have written long ago."""
    with warnings.catch_warnings():
        for said in (".*TorchScript archive.*", ".*torch.jit.load.*", "Detected pickle protocol.*"):
            warnings.filterwarnings("ignore", message=said)
        yield


def _unreadable(file: Path, error: Exception) -> str:
    text = str(error)
    if _wants_more(file, error):
        wanted = re.search(r"GLOBAL ([\w.]+)", text)
        return (
            f"{file} is refused: it is a pickle that wants {wanted.group(1) if wanted else 'objects'}, which could run "
            "code; save the tensors alone, with torch.save(model.state_dict(), ...) or as safetensors"
        )
    strange = isinstance(error, KeyError | pickle.UnpicklingError)
    reason = "its content is not that of a file of weights" if strange else _first(error)
    return f"{file} cannot be read as weights: it is cut off or no checkpoint ({reason})"


def _wants_more(file: Path, error: Exception) -> bool:
    """Whether a file is a pickle, or holds one, that is made of more than tensors and plain values."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "operand" in text:
        with file.open("rb") as content:
            return content.read(1) == pickle.PROTO
    return "allow_pickle" in text or (isinstance(error, pickle.UnpicklingError) and "GLOBAL" in text)


def _tensors(content: Any, file: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The state dict inside what was saved, and the plain values beside it."""
    more: dict[str, Any] = {}
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            more |= {key: value for key, value in content.items() if isinstance(value, str | int | float)}
            content = content[name]
    if isinstance(content, Mapping) and {"state", "param_groups"} <= set(content):
        raise UserError(f"{file} holds the state of an optimizer, no weights; give the file that the model is in")
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{file} holds no state dict of tensors; save the model's state_dict()")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{file} holds no state dict of tensors: {key!r} is of type {type(value).__name__}; save the model's "
                "state_dict()"
            )
    return content, more


def _unwrapped(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    # torch.compile may wrap any part, DistributedDataParallel wraps the whole.
    state = {key.replace(_WRAPPERS[1], ""): value for key, value in state.items()}
    while all(key.startswith(_WRAPPERS[0]) for key in state):
        state = {key.removeprefix(_WRAPPERS[0]): value for key, value in state.items()}
    return state


def _plain(value: Tensor) -> Tensor:
    return value.detach().float() if value.is_floating_point() else value.detach()


def _config(folder: Path, *, file: Path) -> dict[str, Any]:
    """The configuration that goes with the file, where a folder serves two libraries."""
    for name in CONFIGS[::-1] if file.name.startswith("open_clip") else CONFIGS:
        if (folder / name).is_file():
            try:
                content = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{folder / name} is not JSON: {_first(error)}") from error
            return dict(content) if isinstance(content, Mapping) else {}
    return {}


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
