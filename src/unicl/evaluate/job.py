"""What every task of an evaluation reads, and how a task is described."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from unicl.data.prompts import Prompts
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.classes import Names
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.queries import Composed
from unicl.evaluate.rated import Graded
from unicl.evaluate.report import Result
from unicl.model import TwoTowers
from unicl.space import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The choices of an evaluation that tasks read; see `unicl.evaluate.run.evaluate`.

    ``rated`` and ``composed`` name images by the ids of the samples; ``asked`` are queries of their own, with labels.
    """

    names: Names | None = None
    templates: Prompts | None = None
    test_fraction: float = 0.2
    seed: int = 0
    bootstrap: Bootstrap = Bootstrap()
    mistakes: int = 12
    progress: bool = False
    rated: tuple[Graded, ...] = ()
    positive: float | None = None
    composed: Composed | None = None
    languages: Mapping[str, tuple[Sample, ...]] | None = None
    asked: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An evaluation before any image is read: the model, the samples to measure on and, if given, to learn from."""

    model: TwoTowers
    samples: tuple[Sample, ...]
    training: tuple[Sample, ...] | None
    options: Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The same with images embedded, once for all tasks."""

    model: TwoTowers
    pictures: Pictures
    training: Pictures | None
    options: Options

    @property
    def plan(self) -> Plan:
        """The plan that the readable images make."""
        training = None if self.training is None else self.training.samples
        return Plan(model=self.model, samples=self.pictures.samples, training=training, options=self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One kind of evaluation: ``why_not`` says why the data or the model cannot do it, None if they can.

    ``unasked``: it is done where nobody says what to do.
    """

    name: str
    why_not: Callable[[Plan], str | None]
    run: Callable[[Job], Result]
    learns: bool = False
    unasked: bool = True
