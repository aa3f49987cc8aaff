"""Any published model as one of ours: `load` it, start a recipe from it with `adopt`, give one back with `publish`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers, View, ZeroShotSettings, load_model
from unicl.objective.terms import ContrastSettings, DistillSettings, TermSettings
from unicl.recipes import Recipe
from unicl.similarity.scale import Scale, ScaleSettings
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.lora import adapters
from unicl.towers.parts import parts_in, without_parts
from unicl.towers.text import TextSettings, TextTower, build_tokenizer
from unicl.towers.weights import hub
from unicl.towers.weights.checkpoint import open_checkpoint
from unicl.towers.weights.layouts import read
from unicl.towers.weights.names import mismatch, shapes_differ
from unicl.towers.weights.positions import resized
from unicl.towers.weights.published import Published
from unicl.use.export.runtime import is_export, load_export
from unicl.use.merge import merge

Tower = TypeVar("Tower", ImageSettings, TextSettings)


def load(
    source: str | Path,
    *,
    size: int | None = None,
    context: int | None = None,
    align_corners: bool = False,
    tokenizer: str | Path | None = None,
) -> TwoTowers:
    """A model from a run or model folder of ours, an export, a published checkpoint of any known layout, or the hub.

    ``size`` resamples learned positions for images of another side in pixels, ``context`` those of longer texts;
    ``align_corners`` does it as cn_clip does. ``tokenizer`` is the file of one for a checkpoint that needs it (VirTex).
    Raises `UserError` if there is no model, its layout is not known, or an entry of it is not accounted for.
    """
    place = find(source)
    if tokenizer is not None and (is_export(place) or is_own(place)):
        raise UserError(f"the model {str(place)!r} brings its own tokenizer; leave out --tokenizer")
    if is_export(place):
        if size is not None or context is not None:
            raise UserError(f"the export {str(place)!r} has its sizes built in; export the model again with others")
        return load_export(place)
    if size is None and context is None and is_own(place):
        return load_model(place)
    return model_of(read_published(place, size=size, context=context, align_corners=align_corners, tokenizer=tokenizer))


def read_published(
    source: str | Path,
    *,
    size: int | None = None,
    context: int | None = None,
    align_corners: bool = False,
    tokenizer: str | Path | None = None,
) -> Published:
    """What `load` finds, but for exports, as settings and tensors; a single tower is good here too."""
    place = find(source)
    if is_export(place):
        raise UserError(
            f"{str(source)!r} is an export, whose weights stand in graphs; give the model that it was made of"
        )
    found = publish(load_model(place), view=None) if is_own(place) else _read(place, tokenizer=tokenizer)
    return resized(replace(found, source=str(place)), size=size, context=context, align_corners=align_corners)


def _read(place: Path, *, tokenizer: str | Path | None) -> Published:
    opened = open_checkpoint(place)
    if tokenizer is None:
        return read(opened)
    found = read(replace(opened, tokenizer=Path(tokenizer).expanduser()))
    if found.tokenizer is None or found.text is not None:
        raise UserError(f"a model of {found.origin} needs no tokenizer beside it; leave out --tokenizer")
    return found


def find(source: str | Path) -> Path:
    """Where a model lies: the path itself, or its folder in the hub's cache; raises `UserError` if it is nowhere."""
    place = Path(source).expanduser()
    if place.exists():
        return place
    name = str(source)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).suffix:
        return hub.snapshot(name)
    raise UserError(
        f"no model at {name!r}: give a run folder, a checkpoint (file or folder), an export, or a hub name such as "
        "openai/clip-vit-base-patch32"
    )


def is_own(place: Path) -> bool:
    """Whether a folder is a run or a model that this library wrote."""
    if (place / "run.json").is_file() or (place / "checkpoints").is_dir():
        return True
    try:
        content = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"terms", "recipe", "width"} <= set(content) and "export" not in content


def model_of(published: Published) -> TwoTowers:
    """The model, ready to use; raises `UserError` if it has no image tower, or its tokenizer is not at hand."""
    if published.image is None:
        raise UserError(
            f"{published.source or published.origin} holds a text tower alone; start a recipe from it with --init, or "
            "name it with --text"
        )
    text = published.text
    tokenizer = published.tokenizer
    if text is not None:
        tokenizer = tokenizer or build_tokenizer(text)
        if published.vocab_size > tokenizer.vocab_size:
            text = replace(text, options={**text.options, "vocab_size": published.vocab_size})
    settings = ModelSettings(
        image=published.image,
        text=text,
        width=published.width,
        terms=_terms(published) if text is not None or tokenizer is not None else (),
        zero_shot=TypeAdapter(ZeroShotSettings).validate_python(dict(published.zero_shot)),
        recipe="published",
    )
    model = TwoTowers(settings, tokenizer=tokenizer)
    fill_model(model, published)
    prefix = "objective."
    own = {key.removeprefix(prefix): value for key, value in published.state.items() if key.startswith(prefix)}
    if own:
        model.objective.load_state_dict(own)
    return model.eval()


@dataclass(frozen=True, slots=True)
class _Teacher:
    """Unit vectors ``(I, G)`` of pixels ``(I, 3, H, W)``, a block at a time."""

    model: TwoTowers

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim == 2:
            raise UserError("a teacher looks at pictures, but kept features have none; add --cache off")
        tower = self.model.to(images.device).image
        side = (tower.settings.size, tower.settings.size)
        seen = [_at_side(block, side) for block in torch.split(images, 64)]
        return torch.cat([tower(block).whole for block in seen])


def teach(model: TwoTowers) -> None:
    """Give a model in training the teacher that its terms name, if they do; raises `UserError` if it cannot be read."""
    for term in model.settings.terms:
        if isinstance(term, DistillSettings):
            model.teacher = _Teacher(load(term.teacher).eval())


def _at_side(images: Tensor, side: tuple[int, int]) -> Tensor:
    if not len(images) or images.shape[-2:] == side:
        return images
    changed = nn.functional.interpolate(images.float(), size=side, mode="bicubic", antialias=True)
    return changed.round().clamp(0, 255)


@torch.no_grad()
def fill_model(model: TwoTowers, published: Published) -> None:
    """Give a model the towers and the scale of a published one.

    A pair with texts is taken with its heads, which must fit; a single tower, or a pair for a recipe without texts,
    gives its backbone. What only one of them has for parts stays as it is, or is left out. Raises `UserError` naming
    what does not fit.
    """
    whole = published.pair and model.text is not None
    parts: list[tuple[str, nn.Module]] = [] if published.image is None else [("image", model.image)]
    if published.text is not None and model.text is not None:
        parts.append(("text", model.text))
    for side, tower in parts:
        theirs = {k.removeprefix(f"{side}."): v for k, v in published.state.items() if k.startswith(f"{side}.")}
        _fill_tower(tower, theirs, whole=whole, source=published.source or published.origin)
    if published.image is not None:
        model.image.set_normalisation(mean=published.mean, std=published.std)


def _fill_tower(tower: nn.Module, theirs: Mapping[str, Tensor], *, whole: bool, source: str) -> None:
    beside = {"mean", "std", *adapters(tower)}
    own = {key: value for key, value in tower.state_dict().items() if key not in beside}
    if not whole:
        own = {key: value for key, value in own.items() if key.startswith("backbone.")}
        theirs = {key: value for key, value in theirs.items() if key in own}
    if bool(parts_in(own)) != bool(parts_in(theirs)):
        own, theirs = without_parts(own), without_parts(theirs)
    missing, left = sorted(set(own) - set(theirs)), sorted(set(theirs) - set(own))
    if missing or left:
        raise UserError(mismatch(source, missing=missing, left=left))
    for key, value in theirs.items():
        if value.shape != own[key].shape:
            raise UserError(shapes_differ(source, key, theirs=value.shape, ours=own[key].shape))
    tower.load_state_dict({**tower.state_dict(), **theirs})


def adopt(recipe: Recipe, published: Published) -> Recipe:
    """The recipe with the towers of a published model, their width and their scale; how it trains stays its own.

    For a nested recipe, make it with the width of ``published`` first. A single tower keeps the recipe's heads.
    Whether there are parts is the recipe's; what they are is the published model's, if it has some too.
    Raises `UserError` if the width differs, or the recipe has no place for the tower.
    """
    image, text = recipe.image, recipe.text
    whole = published.pair and text is not None
    if published.image is None and text is None:
        raise UserError(f"{published.source} is a text tower, and the recipe {recipe.name!r} reads no texts")
    if whole and recipe.width != published.width:
        raise UserError(
            f"{published.source} makes vectors of {published.width} dimensions, but the recipe {recipe.name!r} wants "
            f"{recipe.width}; leave out --width"
        )
    if published.image is not None:
        image = _kept(published.image, like=recipe.image, whole=whole)
        image = replace(image, drop_path=recipe.image.drop_path, patch_drop=recipe.image.patch_drop)
    if published.text is not None and text is not None:
        text = _kept(published.text, like=text, whole=whole)
    terms = tuple(_started(term, published) for term in recipe.terms) if whole else recipe.terms
    return replace(recipe, image=image, text=text, terms=terms)


def _kept(theirs: Tower, *, like: Tower, whole: bool) -> Tower:
    """Their tower, that trains as ``like`` does, with ``like``'s head unless the whole of it is taken."""
    parts = theirs.parts if whole and theirs.parts and like.parts else like.parts
    pool = theirs.pool if theirs.pool != "parts" or parts else "default"
    if parts is not theirs.parts and like.pool == "parts":
        pool = "parts"
    return replace(
        theirs,
        head=theirs.head if whole else like.head,
        weights="random",
        locked=like.locked,
        dropout=like.dropout,
        checkpointing=like.checkpointing,
        lora=like.lora,
        parts=parts,
        pool=pool,
    )


def _started(term: TermSettings, published: Published) -> TermSettings:
    """The scale goes on from where it was, if it scaled the same kind of loss of the same similarity."""
    if not isinstance(term, ContrastSettings) or published.scale is None or not term.scale.learned:
        return term
    if term.similarity not in ({each["similarity"] for each in published.terms} or {"cosine"}):
        return term
    if (term.scale.bias is None) != (published.bias is None):
        return term
    init = published.scale if term.scale.max is None else min(published.scale, term.scale.max)
    return replace(term, scale=replace(term.scale, init=init, bias=published.bias))


def _terms(published: Published) -> tuple[TermSettings, ...]:
    if published.terms:
        return TypeAdapter(tuple[TermSettings, ...]).validate_python(published.terms)
    init = published.scale or 1 / 0.07
    scale = ScaleSettings(init=init, max=max(100.0, init), bias=published.bias)
    return (ContrastSettings(loss="softmax" if published.bias is None else "sigmoid", scale=scale),)


def publish(model: TwoTowers, *, view: View | None = "instances") -> Published:
    """A model of ours as settings and tensors, in one of its views: for classes, a nested model is narrower.

    None is the whole of it. Raises `UserError` if the head of a nested model, or its parts, cannot be narrowed.
    """
    model = merge(model)
    settings = model.settings
    dims = None if view is None else settings.views[view]
    width = dims or settings.width
    if width != settings.width and any(s is not None and s.parts for s in (settings.image, settings.text)):
        raise UserError(
            f"the parts of this model have {settings.width} dimensions and the view for {view} reads {width} of whole "
            "vectors alone; publish the view for instances"
        )
    towers: dict[str, ImageTower | TextTower] = {"image": model.image} | (
        {} if model.text is None else {"text": model.text}
    )
    state = {
        f"{side}.{key}": value.detach().cpu()
        for side, tower in towers.items()
        for key, value in _narrowed(tower, width).items()
        if key not in ("mean", "std")
    }
    tokenizer = model.tokenizer
    return Published(
        origin=f"unicl, recipe {settings.recipe}",
        image=settings.image,
        text=settings.text if model.text is None else replace(_text_settings(settings), pool=model.text.pool),
        width=width,
        state=state | _scales(model, view or "instances"),
        mean=_three(model.image.mean),
        std=_three(model.image.std),
        eos_id=-1 if tokenizer is None else tokenizer.eos_id,
        pad_id=0 if tokenizer is None else tokenizer.pad_id,
        vocab_size=0 if tokenizer is None else tokenizer.vocab_size,
        tokenizer=tokenizer,
        terms=_terms_of(model),
        zero_shot=TypeAdapter(ZeroShotSettings).dump_python(settings.zero_shot),
    )


def _terms_of(model: TwoTowers) -> tuple[dict[str, Any], ...]:
    """The contrasts of a model that compares more than whole vectors, their scales where they are now."""
    contrasts = [term for term in model.settings.terms if isinstance(term, ContrastSettings)]
    if all(term.similarity == "cosine" for term in contrasts):
        return ()
    scales = model.objective.scales()
    now = [replace(term, scale=replace(term.scale, init=scales[term.name].value)) for term in contrasts]
    return tuple(TypeAdapter(ContrastSettings).dump_python(term) for term in now)


def _text_settings(settings: ModelSettings) -> TextSettings:
    assert settings.text is not None
    return settings.text


_NARROWS = ("linear", "affine", "mlp", "pooler")
"""Heads whose inner sizes do not depend on the width of the embedding."""


def _narrowed(tower: ImageTower | TextTower, width: int) -> dict[str, Tensor]:
    """The state of a tower whose head gives the first ``width`` dimensions."""
    state = dict(tower.state_dict())
    kind, linears = tower.settings.head, [n for n, part in tower.head.named_modules() if isinstance(part, nn.Linear)]
    last = ".".join(part for part in ("head", *linears[-1:]) if part)
    now = len(state[f"{last}.weight"]) if linears else tower.feature_width
    if width == now:
        return state
    if kind not in _NARROWS:
        raise UserError(
            f"the head {kind!r} gives {now} dimensions, of which {width} cannot be published alone; publish the view "
            "for instances"
        )
    cut = {
        f"{last}.{part}": state[f"{last}.{part}"][:width] for part in ("weight", "bias") if f"{last}.{part}" in state
    }
    return state | cut


def _scales(model: TwoTowers, view: View) -> dict[str, Tensor]:
    scales: Mapping[str, Scale] = model.objective.scales()
    scale = scales.get(view) or next(iter(scales.values()), None)
    found = {"log_scale": torch.tensor(math.log(model.scale(view)))}
    if scale is not None:
        found = {"log_scale": scale.logarithm().cpu()}
        if scale.bias is not None:
            found["bias"] = scale.bias.detach().cpu()
    return found


def _three(values: Tensor) -> tuple[float, float, float]:
    first, second, third = values.flatten().tolist()
    return first, second, third
