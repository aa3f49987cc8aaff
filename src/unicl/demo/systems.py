"""The four systems that the demo compares: the same data, texts, towers, steps and scale; other keys and terms."""

from collections.abc import Mapping
from dataclasses import replace

from unicl.objective.terms import ContrastSettings, TermSettings
from unicl.recipes import Recipe, clip, itl, unicl
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings

IMAGE = ImageSettings(
    name="tf_efficientnet_lite0", size=160, weights="package:efficientnet_lite0", locked=True, dropout=0.5
)
"""ImageNet's EfficientNet-Lite0, locked: only its head learns, on features with dropout."""

TEXT = TextSettings(name="bert", layers=0, dim=256, context=32, vocab=8192, pool="mean")
"""The mean of learned token embeddings, from scratch: names of 700 things teach no more than that."""


def systems(*, steps: int) -> Mapping[str, Recipe]:
    """CLIP, UniCL, typed rows in one space, and itl, each for ``steps`` steps."""
    made = {"clip": clip(), "unicl": unicl(), "one space": itl(nested=False), "itl": itl()}
    return {name: _alike(recipe, steps=steps) for name, recipe in made.items()}


def _alike(recipe: Recipe, *, steps: int) -> Recipe:
    """All that is not the idea of a system is the same for all, UniCL's start of the scale included."""
    return replace(
        recipe,
        image=IMAGE,
        text=TEXT,
        terms=tuple(_scaled(term) for term in recipe.terms),
        data=replace(recipe.data, batch=256, augment=None, prompts="auto", balance=False, workers=1),
        optim=replace(recipe.optim, lr=2e-3, weight_decay=0.1, clip=None),
        fit=replace(recipe.fit, steps=steps),
    )


def _scaled(term: TermSettings) -> TermSettings:
    return replace(term, scale=ScaleSettings()) if isinstance(term, ContrastSettings) else term
