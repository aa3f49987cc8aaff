"""Weights of any known layout into a tower that the user named: strictly, or not at all."""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from unicl.errors import UserError
from unicl.towers.lora import adapters
from unicl.towers.parts import parts_in, without_parts
from unicl.towers.weights import hub, layouts, open_clip, openai, package
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.names import mismatch, shapes_differ
from unicl.towers.weights.positions import resample_grid, resized
from unicl.towers.weights.published import Layout

Side = Literal["image", "text"]

_TEXT_PREFIXES: Final = ("text_model.", "bert.", "roberta.", "model.")
_THEIR_TEXTS: Final = r"(?:text\.)?transformer\.resblocks\.|text\.transformer\."


def load_image_weights(tower: nn.Module, *, source: str, name: str) -> None:
    """Give the image tower of timm's model ``name`` the weights of "hub", "package:NAME", a file or folder, or a hub's.

    "hub" is timm's own place; a name such as openai/clip-vit-base-patch16, where nothing of that name lies here, is
    that model of the hub.

    Known layouts: a run of this library, any published pair (head included), and timm's, torchvision's and others' own
    (backbone only). Learned positions are resampled to the tower's image size.
    Raises `UserError` if the weights do not exist or do not fit.
    """
    if source == "hub":
        hub.load_image(tower.get_submodule("backbone"), name=name)
    elif source.startswith("package:"):
        load_strict(tower, package.image_state(source.removeprefix("package:"), tower, model=name), source=source)
    else:
        place = Path(source).expanduser()
        if source.count("/") == 1 and not place.exists() and not place.suffix:
            place = hub.snapshot(source)
        _load_image(tower, open_checkpoint(_own_folder(place)), source=source)


def load_text_weights(tower: nn.Module, *, source: str, name: str) -> None:
    """Give the text tower of the model ``name`` the weights of "hub", "package:NAME", or a file or folder.

    Known layouts: a run of this library, any published pair (head included), and transformers' folders (without a
    head). A tower of shorter context takes the first positions, which is exact.
    Raises `UserError` if the weights do not exist or do not fit.
    """
    place = _own_folder(_text_place(source, name=name))
    if place.is_dir() and (place / "config.json").exists() and not _is_own(place):
        _load_folder(tower.get_submodule("backbone"), place)
    else:
        _load_text(tower, open_checkpoint(place), source=source)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load exactly these tensors; raises `UserError` naming the missing, the unexpected and the wrongly shaped.

    Heads of parts that only one of them has do not count: a tower's own stay as they are.
    """
    own = module.state_dict()
    state = without_parts(state) if not parts_in(own) else state
    fresh = set(adapters(module)) | (set() if parts_in(state) else parts_in(own))
    missing, left = sorted(set(own) - set(state) - fresh), sorted(set(state) - set(own))
    if missing or left:
        raise UserError(mismatch(source, missing=missing, left=left))
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise UserError(shapes_differ(source, key, theirs=value.shape, ours=own[key].shape))
    module.load_state_dict({**own, **state}, strict=True)


def fit_positions(state: Mapping[str, Tensor], tower: nn.Module) -> dict[str, Tensor]:
    """OpenAI's or open_clip's state dict with position tables of a tower's sizes.

    Those of images are resampled (bicubic), those of texts cut to the first.
    """
    changed = dict(state)
    own = tower.state_dict()
    image = next((value for key, value in own.items() if key.endswith("pos_embed")), None)
    text = next((value for key, value in own.items() if key.endswith("position_embedding.weight")), None)
    for name, value in state.items():
        if name.endswith("positional_embedding") and name.startswith("visual.") and image is not None:
            old, new = (round((rows - 1) ** 0.5) for rows in (len(value), image.shape[-2]))
            changed[name] = value if old == new else resample_grid(value, old=(old, old), new=(new, new))
        elif name.endswith("positional_embedding") and text is not None:
            changed[name] = value[: len(text)]
    return changed


def _load_image(tower: nn.Module, found: Checkpoint, *, source: str) -> None:
    state = _own(found.state, part="image") or _of_pair(found, tower, side="image", source=source)
    if state:
        load_strict(tower, state, source=source)
        return
    backbone = tower.get_submodule("backbone")
    state = _timm_state(found.state, backbone)
    single = layouts.find(found, among=layouts.SINGLES)
    if single is not None and set(state) != set(backbone.state_dict()):
        state = _share(single.read(found).state, part="image.backbone") or state
    load_strict(backbone, state, source=source)


def _load_text(tower: nn.Module, found: Checkpoint, *, source: str) -> None:
    if state := _own(found.state, part="text") or _of_pair(found, tower, side="text", source=source):
        load_strict(tower, state, source=source)
    else:
        backbone = tower.get_submodule("backbone")
        load_strict(backbone, _transformers_state(found.state, backbone), source=source)


def _of_pair(found: Checkpoint, tower: nn.Module, *, side: Side, source: str) -> dict[str, Tensor]:
    """The tower's share of a published pair; empty if it is none."""
    layout = layouts.find(found, among=layouts.PAIRS)
    if layout is not None and layout.NAME not in (openai.NAME, open_clip.NAME):
        return _of_layout(found, layout, tower, side=side)
    if not found.any(r"visual\." if side == "image" else _THEIR_TEXTS):
        return {}
    _check_activation(found, tower, side=side, source=source)
    return open_clip.tower_state(fit_positions(found.state, tower), tower, side=side, source=source)


def _of_layout(found: Checkpoint, layout: Layout, tower: Any, *, side: Side) -> dict[str, Tensor]:
    published = layout.read(found)
    if side == "image" and published.image is not None:
        published = resized(published, size=tower.settings.size, context=None)
    if side == "text" and published.text is not None and published.text.context > tower.settings.context:
        published = resized(published, size=None, context=tower.settings.context)
    state = _share(published.state, part=side)
    if state and not published.pair:
        state = {k: v for k, v in tower.state_dict().items() if not k.startswith("backbone.")} | state
    shown = {"mean": published.mean, "std": published.std} if side == "image" and state else {}
    return state | {name: torch.tensor(values).view(-1, 1, 1) for name, values in shown.items()}


def _check_activation(found: Checkpoint, tower: nn.Module, *, side: Side, source: str) -> None:
    blocks = r"visual\.transformer\.resblocks" if side == "image" else r"(?:text\.)?transformer\.resblocks"
    wanted = open_clip.is_quick(found) if found.any(blocks) else None
    quick = any(type(module).__name__.startswith("QuickGELU") for module in tower.modules())
    if wanted is not None and wanted != quick:
        names = {True: "QuickGELU", False: "GELU"}
        fix = "a model with quickgelu in its name" if wanted else "one without quickgelu in its name"
        fix = fix if side == "image" else "text.options with another hidden_act"
        raise UserError(
            f"the weights in {source} were made with {names[wanted]}, but the {side} tower computes {names[quick]}; "
            f"choose {fix}"
        )


def _own_folder(place: Path) -> Path:
    """The model folder of a run of ours, if it is one."""
    with suppress(OSError, ValueError, KeyError):
        run = json.loads((place / "run.json").read_text(encoding="utf-8"))
        homes = [place / "checkpoints" / str(run[name]) for name in ("best", "last") if run.get(name)]
        return next((home for home in homes if (home / "model.safetensors").is_file()), place)
    return place


def _is_own(place: Path) -> bool:
    try:
        content = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, Mapping) and {"image", "terms", "width"} <= set(content)


def _own(state: Mapping[str, Tensor], *, part: Side) -> dict[str, Tensor]:
    """The tower's share of a model of ours, or a tower of ours by itself; empty if it is neither."""
    if any(key.startswith(f"{part}.backbone.") for key in state):
        return _share(state, part=part)
    return dict(state) if any(key.startswith("backbone.") for key in state) else {}


def _share(state: Mapping[str, Tensor], *, part: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


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


def _encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's share of a pair of encoder and decoder, which may keep their one table of words beside both."""
    plain = {key.removeprefix("model."): value for key, value in state.items()}
    words = {"embed_tokens.weight": plain["shared.weight"]} if "shared.weight" in plain else {}
    return words | _share(plain, part="encoder")


def _load_folder(model: Any, place: Path) -> None:
    if type(model).__name__.endswith(("Stack", "Encoder")):
        # transformers reads the encoder of a T5 or an M2M100 as a part of the whole only.
        load_strict(model, _encoder_state(open_checkpoint(place).state), source=str(place))
        return
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
        raise UserError(mismatch(str(place), missing=missing, left=left))
    load_strict(model, {k: v for k, v in loaded.state_dict().items() if k in own}, source=str(place))


def _text_place(source: str, *, name: str) -> Path:
    if source.startswith("package:"):
        return package.text_folder(source.removeprefix("package:"))
    if source == "hub":
        return hub.snapshot(name)
    return Path(source).expanduser()


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
