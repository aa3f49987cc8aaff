"""What the layouts of transformers' dual models share beside their towers."""

from typing import Any, Final

from unicl.errors import UserError
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.names import Rule, Unused
from unicl.towers.weights.published import Published

COUNTERS: Final = Unused(
    r".*\.(position_ids|token_type_ids)", "numbers in a row that older versions of transformers kept"
)
SCALE: Final = Rule("log_scale", "logit_scale")


def read_settings(found: Checkpoint, name: str, *, part: str = "") -> Any:
    """config.json, or the ``part`` of it, as transformers' configuration class ``name``.

    Raises `UserError` if it is missing or not one.
    """
    import transformers

    if not found.config:
        raise UserError(
            f"{found.place} holds weights of a transformers model but no config.json, which says the number of heads "
            "and the activation; give the folder that has both"
        )
    content = found.config.get(part) if part else found.config
    try:
        return getattr(transformers, name).from_dict(dict(content or {}))
    # A broken configuration fails in as many ways as it has fields.
    except Exception as error:
        raise UserError(f"the config.json of {found.place} is no {name}: {error}") from error


def nested(found: Checkpoint, side: str) -> str:
    """``side`` or ``side.side``: some versions of transformers keep CLIP's towers one level deeper."""
    return f"{side}.{side}" if found.any(rf"{side}\.{side}\.") else side


def bias_refusal(model: Published) -> str | None:
    """Why scores cannot be expressed by a scale alone, or None."""
    if model.bias is not None:
        return "scores have a bias (sigmoid loss), for which there is no place; only SiglipModel has one"
    return None if model.scale is not None else "the model has no scale"
