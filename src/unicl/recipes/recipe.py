"""What a recipe is: all choices of a system in one value, and the sizes that a system comes in."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from unicl.data.image import Augment
from unicl.data.stream import StreamSettings
from unicl.data.words.tags import Tags
from unicl.errors import UserError, suggest
from unicl.model import ZeroShotSettings
from unicl.objective.terms import TermSettings
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.train.compute import ComputeSettings
from unicl.train.loop import FitSettings
from unicl.train.optim import OptimSettings
from unicl.train.stages import SINGLE, Stage, at_size

DEFAULT_IMAGE: Final = ImageSettings(name="efficientnet_lite0", size=160, weights="auto")
"""Small enough for a laptop; ``auto`` takes the weights of an installed package, or else starts at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All choices of a system: keys and data, towers, the terms of the objective, and how it is trained.

    ``words``: of what the tokenizer is made where no text tower reads texts and terms predict them.
    ``tags``: what captions give images as labels, in place of their own; None leaves these.
    ``width``: of the embedding; None is that of the image tower's features. ``stages``: what is trained when; none is
    one stage, in which towers learn but for those that are ``locked``.
    """

    name: str
    terms: tuple[TermSettings, ...]
    data: StreamSettings = StreamSettings()
    image: ImageSettings = DEFAULT_IMAGE
    text: TextSettings | None = TextSettings()
    words: TextSettings | None = None
    tags: Tags | None = None
    width: int | None = 512
    zero_shot: ZeroShotSettings = ZeroShotSettings()
    optim: OptimSettings = OptimSettings()
    fit: FitSettings = FitSettings()
    compute: ComputeSettings = ComputeSettings()
    stages: tuple[Stage, ...] = ()


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe, at least one, each of which says what of the towers learns."""
    image, text = recipe.image, recipe.text
    return tuple(
        replace(stage, image=stage.learning(image), text=None if text is None else stage.learning(text))
        for stage in recipe.stages or SINGLE
    )


def at_stage(recipe: Recipe, number: int) -> Recipe:
    """What one stage trains, as a recipe: its size, data, rate and length.

    A tower is ``locked`` there if nothing before its head learns at any time of the stage.
    """
    stage = stages_of(recipe)[number]
    image, text, data = recipe.image, recipe.text, recipe.data
    # Adapters and a lock exclude each other in settings; what learns is set on the model itself.
    locked = [tower is not None and not tower.lora and stage.learning(tower).still for tower in (image, text)]
    own = stage.steps is not None or stage.epochs is not None
    return replace(
        recipe,
        image=replace(at_size(image, stage.size), locked=locked[0]),
        text=None if text is None else replace(text, locked=locked[1]),
        data=replace(
            data, batch=stage.batch or data.batch, augment=data.augment if stage.augment == "same" else stage.augment
        ),
        optim=replace(
            recipe.optim,
            lr=recipe.optim.lr * stage.rate,
            warmup=recipe.optim.warmup if stage.warmup is None else stage.warmup,
        ),
        fit=replace(
            recipe.fit,
            steps=stage.steps if own else recipe.fit.steps,
            epochs=stage.epochs or recipe.fit.epochs,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What the variants of a system differ in: towers, embedding width, and how they are trained."""

    image: ImageSettings = DEFAULT_IMAGE
    text: TextSettings = TextSettings()
    width: int = 256
    reduced: int = 12
    scale: float = 1 / 0.07
    batch: int = 128
    augment: Augment | None = Augment()
    optim: OptimSettings = OptimSettings()
    fit: FitSettings = FitSettings()
    stages: tuple[Stage, ...] = ()


def chosen(sizes: Mapping[str, Size], towers: str) -> Size:
    """The size of a name; raises `UserError` for one that the recipe does not have."""
    known(towers, among=sizes, argument="towers")
    return sizes[towers]


def known(value: str, *, among: Collection[str], argument: str) -> None:
    """Raise `UserError` if an argument of a recipe has a value that it does not know."""
    if value not in among:
        raise UserError(f"unknown {argument} {value!r}{suggest(value, among)}; this recipe knows {', '.join(among)}")
