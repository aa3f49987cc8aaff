"""Weights of any known layout into a tower: strictly, or not at all."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unicl.errors import UserError
from unicl.towers.weights import hub, open_clip, package

_IN_FOLDER: Final = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
_CONTAINERS: Final = ("state_dict", "model", "model_state_dict")
_TEXT_PREFIXES: Final = ("text_model.", "bert.", "roberta.", "model.")


def load_image_weights(tower: nn.Module, *, source: str, name: str) -> None:
    """Give the image tower of timm's model ``name`` the weights of "hub", "package:NAME", or a file or folder.

    Known layouts: a run of this library, OpenAI's and open_clip's checkpoints (head included), timm's (backbone only).
    Raises `UserError` if the weights do not exist or do not fit.
    """
    if source == "hub":
        hub.load_image(tower.get_submodule("backbone"), name=name)
    elif source.startswith("package:"):
        load_strict(tower, package.image_state(source.removeprefix("package:"), tower, model=name), source=source)
    else:
        _load_image_state(tower, read_state(source), source=source)


def load_text_weights(tower: nn.Module, *, source: str, name: str) -> None:
    """Give the text tower of the model ``name`` the weights of "hub", "package:NAME", or a file or folder.

    Known layouts: a run of this library, OpenAI's and open_clip's checkpoints (head included), transformers'
    (without a head). Raises `UserError` if the weights do not exist or do not fit.
    """
    place = _text_place(source, name=name)
    if place.is_dir() and (place / "config.json").exists():
        _load_folder(tower.get_submodule("backbone"), place)
    else:
        _load_text_state(tower, read_state(str(place)), source=source)


def read_state(source: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a PyTorch file, read without running its code, or of a folder with one.

    Raises `UserError` if there is none or it cannot be read safely.
    """
    file = _file(Path(source).expanduser())
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each have their own
        if "TorchScript" not in str(error):
            raise UserError(f"{file} cannot be read as weights: {_reason(error)}") from error
        content = torch.jit.load(file, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} holds no state dict of tensors; save the model's state_dict()")
    return {key.removeprefix("module."): value for key, value in content.items()}


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load exactly these tensors; raises `UserError` naming the missing, the unexpected and the wrongly shaped."""
    own = module.state_dict()
    missing, left = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or left:
        raise UserError(open_clip.mismatch(source, missing=missing, left=left))
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise UserError(
                f"{source} does not fit this tower: {key} is {tuple(value.shape)} there, {tuple(own[key].shape)} here; "
                "use the model name, width and sizes that the weights were made with"
            )
    module.load_state_dict(state, strict=True)


def _load_image_state(tower: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    if open_clip.is_image_state(state):
        load_strict(tower, open_clip.image_state(state, tower), source=source)
    elif own := _own(state, part="image"):
        load_strict(tower, own, source=source)
    else:
        backbone = tower.get_submodule("backbone")
        load_strict(backbone, _timm_state(state, backbone), source=source)


def _load_text_state(tower: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    if open_clip.is_text_state(state):
        load_strict(tower, open_clip.text_state(state, tower), source=source)
    elif own := _own(state, part="text"):
        load_strict(tower, own, source=source)
    else:
        backbone = tower.get_submodule("backbone")
        load_strict(backbone, _transformers_state(state, backbone), source=source)


def _own(state: Mapping[str, Tensor], *, part: str) -> dict[str, Tensor]:
    """The tower's share of a model of ours, or a tower of ours by itself; empty if it is neither."""
    prefix = f"{part}." if any(key.startswith(f"{part}.backbone.") for key in state) else ""
    if not any(key.startswith(f"{prefix}backbone.") for key in state):
        return {}
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _timm_state(state: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    names = model.pretrained_cfg["classifier"]
    heads = (names,) if isinstance(names, str) else tuple(names or ())
    own = set(model.state_dict())
    kept = {k: v for k, v in state.items() if k in own or k.rpartition(".")[0] not in heads}
    # timm's own repair of old layouts and of learned positions for another image size.
    repair = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return dict(repair(kept, model)) if repair else kept


def _transformers_state(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    prefix = next((p for p in _TEXT_PREFIXES if any(key.startswith(p) for key in state)), "")
    inside = any(key.startswith(prefix) for key in model.state_dict()) and prefix
    plain = {key if inside else key.removeprefix(prefix): value for key, value in state.items()}
    parts = {key.partition(".")[0] for key in model.state_dict()}
    return {key: value for key, value in plain.items() if key.partition(".")[0] in parts and "position_ids" not in key}


def _load_folder(model: Any, place: Path) -> None:
    try:
        loaded, report = type(model).from_pretrained(
            place, config=model.config, output_loading_info=True, local_files_only=True, dtype=torch.float32
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{place} holds no weights for this text model: {_reason(error)}") from error
    own = model.state_dict()
    parts = {key.partition(".")[0] for key in own}
    missing = sorted(key for key in report["missing_keys"] if key in own)
    left = sorted(key for key in report["unexpected_keys"] if key.partition(".")[0] in parts - {"pooler"})
    if missing or left:
        raise UserError(open_clip.mismatch(str(place), missing=missing, left=left))
    load_strict(model, {k: v for k, v in loaded.state_dict().items() if k in own}, source=str(place))


def _text_place(source: str, *, name: str) -> Path:
    if source.startswith("package:"):
        return package.text_folder(source.removeprefix("package:"))
    if source == "hub":
        return hub.snapshot(name)
    return Path(source).expanduser()


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _file(place: Path) -> Path:
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"no weights at {place}: give a file, a folder, 'hub', 'package:NAME' or 'random'")
    found = [place / name for name in _IN_FOLDER if (place / name).is_file()]
    found += sorted(path for path in place.iterdir() if path.suffix in {".safetensors", ".pt", ".pth", ".bin"})
    if not found:
        raise UserError(f"the folder {place} holds no weights; wanted {', '.join(_IN_FOLDER)} or a .pt file")
    return found[0]
