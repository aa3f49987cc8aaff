"""Two models of one architecture as one: adapters into their matrices, and weights between two models'."""

import copy
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

import torch
from torch import Tensor

from unicl.data.text import Tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers
from unicl.towers.lora import adapters, merge_adapters
from unicl.towers.text import OWN_NAMES, TextTower

TRAINING: Final = ("weights", "locked", "lora", "dropout", "drop_path", "patch_drop", "checkpointing")
"""What a tower's settings say of its training alone."""
COUNT: Final = "num_batches_tracked"
_LOOSE: Final = ("name", "tokenizer", "vocab", "pool")
"""What a text tower's settings name in several ways; what they stand for is compared itself."""
_OF_A_FILE: Final = ("transformers_version", "dtype", "torch_dtype", "architectures")


def merge(model: TwoTowers) -> TwoTowers:
    """A copy with its adapters added to the matrices they sit on: plain weights, ``lora`` 0, the same features.

    A model without adapters is given back as it is.
    """
    if not adapters(model):
        return model
    merged = _copied(model)
    merge_adapters(merged)
    image, text = merged.settings.image, merged.settings.text
    merged.settings = replace(
        merged.settings, image=replace(image, lora=0), text=None if text is None else replace(text, lora=0)
    )
    merged.image.settings = replace(merged.image.settings, lora=0)
    merged.image.lock(merged.image.locked)
    if merged.text is not None:
        merged.text.settings = replace(merged.text.settings, lora=0)
        merged.text.lock(merged.text.locked)
    return merged


@torch.no_grad()
def interpolate(first: TwoTowers, second: TwoTowers, *, alpha: float) -> TwoTowers:
    """The model whose weights are ``(1 - alpha) * first + alpha * second`` (Wortsman et al. 2022, "WiSE-FT").

    Meant for a model and what was trained from it. Adapters are merged first; the scale is taken as its logarithm, as
    it is learned; statistics of batch norm like weights, their counts of batches the larger one.
    What the settings say of training, and a term of the objective that only one has, are ``second``'s. Raises
    `UserError` if ``alpha`` is not from 0 to 1 (outside, the weights would lie beyond either model), or naming the
    field in which the models differ.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is the share of the second model, from 0 to 1, not {alpha:g}; .5 lies halfway")
    first, second = merge(first), merge(second)
    _check_settings(first.settings, second.settings)
    _check_text(first, second)
    theirs = second.state_dict()
    ours = _without_own_terms(first, second) | _own_terms(second, first)
    _check_state(ours, theirs)
    between = _copied(second)
    between.load_state_dict({name: _between(name, ours[name], theirs[name], alpha=alpha) for name in theirs})
    return between.eval()


def _without_own_terms(model: TwoTowers, other: TwoTowers) -> dict[str, Tensor]:
    """The state of a model but for terms that the other has not."""
    own = tuple(f"objective.terms.{name}." for name in model.objective.terms if name not in other.objective.terms)
    return {name: value for name, value in model.state_dict().items() if not name.startswith(own)}


def _own_terms(model: TwoTowers, other: TwoTowers) -> dict[str, Tensor]:
    """The state of the terms that the other has not."""
    shared = _without_own_terms(model, other)
    return {name: value for name, value in model.state_dict().items() if name not in shared}


def _copied(model: TwoTowers) -> TwoTowers:
    # A tokenizer does not change, and takes long to copy.
    return copy.deepcopy(model, {id(model.tokenizer): model.tokenizer})


def _between(name: str, first: Tensor, second: Tensor, *, alpha: float) -> Tensor:
    if second.is_floating_point():
        # Exactly the one or the other at both ends.
        return first.to(second) if alpha == 0 else (1 - alpha) * first.to(second) + alpha * second
    moved = first.to(second.device)
    if name.endswith(COUNT):
        return torch.maximum(moved, second)
    if not torch.equal(moved, second):
        raise UserError(f"the models differ in {name}, which counts or points and has nothing between; merge others")
    return second


def _check_settings(first: ModelSettings, second: ModelSettings) -> None:
    """Every field that makes the towers, or says how they are read, must be equal."""
    if (first.text is None) != (second.text is None):
        raise UserError(_differ("text", first.text, second.text))
    for side, one, other in (("image", first.image, second.image), ("text", first.text, second.text)):
        for field in fields(one) if one is not None else ():
            loose = field.name in TRAINING or (side == "text" and field.name in _LOOSE)
            if not loose and getattr(one, field.name) != getattr(other, field.name):
                raise UserError(_differ(f"{side}.{field.name}", getattr(one, field.name), getattr(other, field.name)))
    for name in ("width", "classes"):
        if getattr(first, name) != getattr(second, name):
            raise UserError(_differ(name, getattr(first, name), getattr(second, name)))


def _check_text(first: TwoTowers, second: TwoTowers) -> None:
    """The model of texts and the tokenizer, which may be named by places that differ."""
    if first.text is None or second.text is None:
        return
    one, other = _made_of(first.text), _made_of(second.text)
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            raise UserError(_differ(f"text.{name}", one.get(name), other.get(name)))
    if _words(first.tokenizer) != _words(second.tokenizer):
        raise UserError("the models differ in their tokenizers: the same number is another word; merge others")


def _made_of(tower: TextTower) -> Mapping[str, Any]:
    if tower.settings.name in OWN_NAMES:
        return {"name": tower.settings.name, "pool": tower.pool}
    content: dict[str, Any] = tower.backbone.config.to_dict()
    kept = {name: value for name, value in content.items() if name not in _OF_A_FILE and "dropout" not in name}
    return {name: value for name, value in kept.items() if not name.startswith("_")} | {"pool": tower.pool}


def _words(tokenizer: Tokenizer | None) -> object:
    return None if tokenizer is None else (tokenizer.inner.to_str(), tokenizer.cleaning, tokenizer.eos_id)


def _check_state(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    alone = sorted(set(first) ^ set(second))
    if alone:
        raise UserError(f"only one of the models has {', '.join(alone[:4])} ({len(alone)} in all); merge others")
    for name, value in first.items():
        if value.shape != second[name].shape:
            raise UserError(_differ(name, tuple(value.shape), tuple(second[name].shape)))
    for name in ("image.mean", "image.std"):
        if not torch.equal(first[name], second[name].to(first[name].device)):
            raise UserError(_differ(name, first[name].flatten().tolist(), second[name].flatten().tolist()))


def _differ(name: str, first: object, second: object) -> str:
    return f"the models differ in {name}: {first!r} and {second!r}; only weights of one architecture can be merged"
