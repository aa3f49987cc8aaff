"""Weights from the Hugging Face hub: from its cache, or from the network if there is one."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from unicl.errors import UserError

PATIENCE: Final = 5.0
"""Seconds to wait for the hub before saying that it cannot be reached."""

_BESIDE: Final = ("*.json", "*.txt", "*.model")
_WEIGHTS: Final = (
    ("model*.safetensors", "open_clip_model.safetensors"),
    ("pytorch_model*.bin", "open_clip*.bin", "*.pt", "*.npz"),
)
"""Files with weights: the second kind is fetched only where the first is missing."""


def load_image(model: Any, *, name: str) -> None:
    """Give a timm model the pretrained weights that timm knows for ``name``.

    Raises `UserError` if timm knows none, or the hub cannot be reached and its cache has none.
    """
    from timm.models import load_pretrained

    source = model.pretrained_cfg
    if not (source.get("hf_hub_id") or source.get("url")):
        raise UserError(f"timm has no pretrained weights for {name!r}; give a file, or train from random weights")
    if repository := source.get("hf_hub_id"):
        require(str(repository), also=f"give a file with the weights of {name!r}")
    try:
        load_pretrained(model, num_classes=model.num_classes)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"the pretrained weights of {name!r} could not be had: {error}") from error


def snapshot(repository: str) -> Path:
    """The folder of a hub model, fetched if it is not in the cache.

    Raises `UserError` if there is no such model or no way to it.
    """
    from huggingface_hub import snapshot_download

    offline = _cached(repository)
    files = () if offline else require(repository, also="give a folder that holds the model")
    safe = any(fnmatch(file, pattern) for file in files for pattern in _WEIGHTS[0])
    patterns = [*_BESIDE, *_WEIGHTS[0], *(() if safe else _WEIGHTS[1])]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=offline))
    except (OSError, ValueError) as error:
        raise UserError(f"the hub model {repository!r} could not be had: {error}") from error


def require(repository: str, *, also: str) -> tuple[str, ...]:
    """The files of a hub model, none if it is in the cache.

    Raises `UserError` at once if it is neither there nor in reach; ``also`` is another way.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if _cached(repository):
        return ()
    try:
        found = HfApi().model_info(repository, timeout=PATIENCE)
        return tuple(file.rfilename for file in found.siblings or ())
    except RepositoryNotFoundError as error:
        raise UserError(f"the hub has no model {repository!r} that you may read; check the name, or {also}") from error
    except Exception as error:  # every way in which a network can be missing
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"the model hub cannot be reached for {repository!r} ({reason}); {also}") from error


def _cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)
