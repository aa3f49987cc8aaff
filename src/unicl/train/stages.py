"""Stages: what is trained when, on what, for how long, and what makes a run move on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal

from torch import Tensor

from unicl.data.image import Augment
from unicl.data.sources import Source
from unicl.errors import UserError, suggest
from unicl.model import TwoTowers
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.towers.weights.positions import resized
from unicl.towers.weights.published import Published
from unicl.train.learning import Learning, set_learning, shares_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau:
    """A metric of the running evaluation that no longer improves: not within ``patience`` evaluations.

    ``metric``: such as "retrieval/mean_recall"; None is ``fit.metric``.
    """

    metric: str | None = None
    patience: int = 1

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UserError(f"patience={self.patience} evaluations tell nothing; give 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a recipe: where it says nothing, the recipe's own fields hold.

    * ``image``, ``text``: what of the towers learns; None is what their ``locked`` says. Scales always learn.
    * ``steps`` or ``epochs``: its length; steps win. Without either, it is that of ``fit``.
    * ``plateau``: ends it earlier. It is looked for at each evaluation (``fit.eval_every``, or once an epoch), and
      needs validation data; without any, the stage has its whole length.
    * ``rate``: a factor of ``optim.lr``; ``warmup``: in place of ``optim.warmup``. Every stage has its own schedule.
    * ``optimiser``: "fresh" forgets all moments; "kept" keeps those of parameters that learned just before.
    * ``batch``; ``size``: the side of images, for which learned positions are resampled (CLIP's last epoch at 336).
    * ``sources``: the names of those that it learns from, all of them if empty.
    * ``augment``: in place of ``data.augment``; "same" keeps it.
    """

    name: str = "stage"
    image: Learning | None = None
    text: Learning | None = None
    steps: int | None = None
    epochs: float | None = None
    plateau: Plateau | None = None
    rate: float = 1.0
    warmup: float | None = None
    optimiser: Literal["fresh", "kept"] = "fresh"
    batch: int | None = None
    size: int | None = None
    sources: tuple[str, ...] = ()
    augment: Augment | Literal["same"] | None = "same"

    def __post_init__(self) -> None:
        for field in ("steps", "epochs", "rate", "batch", "size"):
            value = getattr(self, field)
            if value is not None and value <= 0:
                raise UserError(f"the stage {self.name!r} has {field}={value}; give a number above 0, or leave it out")

    def learning(self, tower: ImageSettings | TextSettings) -> Learning:
        """What of a tower learns in this stage."""
        own = self.image if isinstance(tower, ImageSettings) else self.text
        return own or Learning(part="head" if tower.locked else "all")


SINGLE: Final = (Stage(),)
"""The stages of a recipe that names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Which of all stages it is."""

    stages: tuple[Stage, ...]
    number: int

    @property
    def stage(self) -> Stage:
        """The stage itself."""
        return self.stages[self.number]

    @property
    def last(self) -> bool:
        """Whether none follows."""
        return self.number == len(self.stages) - 1

    def name(self, ahead: int = 0) -> str:
        """The stage, or one ahead of it, for people."""
        at = self.number + ahead
        return f"stage {at + 1} of {len(self.stages)} ({self.stages[at].name})"


class Phases:
    """What of a model learns at each time of a stage, from the start all that ever does; raises as `set_stage`.

    ``factors`` are those of the rate of each tower now; at 0 a tower is locked. ``shares`` are those of parameters by
    name, all along.
    """

    def __init__(self, model: TwoTowers, stage: Stage) -> None:
        set_stage(model, stage)
        towers = {"image": model.image, "text": model.text}
        self.towers: Final = {side: tower for side, tower in towers.items() if tower is not None}
        self.learning: Final = {side: stage.learning(tower.settings) for side, tower in self.towers.items()}
        self.shares: Final = {
            f"{side}.{name}": share
            for side, tower in self.towers.items()
            for name, share in shares_of(tower, self.learning[side]).items()
        }
        self.factors: dict[str, float] = {}
        self.locked: frozenset[str] = frozenset()

    @property
    def apart(self) -> bool:
        """Whether towers have rates of their own."""
        return any(each.rates != (1.0,) for each in self.learning.values())

    def turn(self, done: float) -> bool:
        """Go to where a share of the stage is done; returns whether other towers learn than before."""
        self.factors = {side: each.factor(done) for side, each in self.learning.items()}
        locked = frozenset(side for side, each in self.learning.items() if each.changes and not self.factors[side])
        changed, self.locked = locked ^ self.locked, locked
        for side in changed:
            set_learning(self.towers[side], Learning(part="none") if side in locked else self.learning[side])
        return bool(changed)


def check_shards(stage: Stage, *, parallel: str) -> None:
    """Raise `UserError` if towers are locked for a time where each process holds a part of them."""
    asked = [each for each in (stage.image, stage.text) if each is not None and each.changes]
    if asked and parallel == "fsdp":
        raise UserError(
            f"the stage {stage.name!r} locks a tower for a time (rates={asked[0].rates}), but --parallel fsdp parts "
            "towers by what learns in all of a stage; take ddp, a ramp, or several stages with optimiser=kept"
        )


def set_stage(model: TwoTowers, stage: Stage) -> None:
    """Let learn of a model what a stage asks for; a tower of which it says nothing stays as it is.

    Raises `UserError` if that is nothing, or is not there.
    """
    for tower, learning in ((model.image, stage.image), (model.text, stage.text)):
        if tower is not None and learning is not None:
            with _named(stage):
                set_learning(tower, replace(learning, part="none", from_block=None) if learning.never else learning)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"nothing learns in the stage {stage.name!r}: both towers are locked with their heads, and the scale is "
            "fixed; let one of them learn"
        )


def pick_sources(sources: Sequence[Source], stage: Stage) -> list[Source]:
    """The sources that a stage learns from; raises `UserError` for a name that none has."""
    names = [source.name for source in sources]
    for name in stage.sources:
        if name not in names:
            raise UserError(
                f"the stage {stage.name!r} learns from {name!r}{suggest(name, names)}, but the data are "
                f"{', '.join(map(repr, names))}"
            )
    return [source for source in sources if not stage.sources or source.name in stage.sources]


def at_size(settings: ImageSettings, size: int | None) -> ImageSettings:
    """An image tower's settings for images of another side; a frame keeps the same share of the picture."""
    if size is None or size == settings.size:
        return settings
    frame, before = settings.frame, settings.size
    scale = None if frame.scale is None else round(frame.scale * size / before)
    return replace(settings, size=size, frame=replace(frame, scale=scale))


def at_size_of(model: TwoTowers, weights: Mapping[str, Tensor], *, before: ImageSettings) -> Mapping[str, Tensor]:
    """The weights of a model for images of another side, its positions resampled as `positions.resized` does.

    Raises `UserError` if the image tower cannot read such images.
    """
    return _resampled(weights, width=model.settings.width, before=before, size=model.settings.image.size)


def check_stages(model: TwoTowers, stages: Sequence[Stage], *, number: int = 0) -> None:
    """Raise `UserError` if a later stage cannot be, before the one of this ``number`` has cost hours."""
    image, width = model.settings.image, model.settings.width
    for stage in stages[number:]:
        set_stage(model, stage)
        size = stage.size or image.size
        _resampled(model.state_dict(), width=width, before=image, size=size)
    set_stage(model, stages[number])


def _resampled(weights: Mapping[str, Tensor], *, width: int, before: ImageSettings, size: int) -> Mapping[str, Tensor]:
    if size == before.size:
        return weights
    known = Published(origin="the stage before", image=before, text=None, width=width, state=weights)
    return resized(known, size=size, context=None).state


@contextmanager
def _named(stage: Stage) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"the stage {stage.name!r}: {error}") from error
