"""Weights from the Hugging Face hub: from its cache, or from the network if there is one."""

from pathlib import Path
from typing import Any, Final

from unicl.errors import UserError

PATIENCE: Final = 5.0
"""Seconds to wait for the hub before saying that it cannot be reached."""

_FILES: Final = ("*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin")


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

    if not (offline := _cached(repository)):
        require(repository, also="give a folder that holds the model")
    try:
        return Path(snapshot_download(repository, allow_patterns=list(_FILES), local_files_only=offline))
    except (OSError, ValueError) as error:
        raise UserError(f"the hub model {repository!r} could not be had: {error}") from error


def require(repository: str, *, also: str) -> None:
    """Raise `UserError` at once if a hub model is neither in the cache nor in reach; ``also`` is another way."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if _cached(repository):
        return
    try:
        HfApi().model_info(repository, timeout=PATIENCE)
    except RepositoryNotFoundError as error:
        raise UserError(f"the hub has no model {repository!r} that you may read; check the name, or {also}") from error
    except Exception as error:  # every way in which a network can be missing
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"the model hub cannot be reached for {repository!r} ({reason}); {also}") from error


def _cached(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)
