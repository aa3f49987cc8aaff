"""What evaluations mean for a run: which one is the best so far, and when a stage no longer gets better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unicl.errors import UserError, suggest
from unicl.train.record import Progress
from unicl.train.stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Reads the numbers of evaluations, which must be the same on all processes, and notes them in a `Progress`.

    ``metric`` says what is best, of all evaluations of a run; ``patience`` is that of stages without a plateau.
    ``halve`` is `unicl.train.optim.OptimSettings.halve`.
    """

    metric: str | None
    patience: int | None
    stages: Sequence[Stage]
    halve: int | None = None

    def best(self, progress: Progress, metrics: dict[str, float]) -> bool:
        """Whether this evaluation is the best of the run; raises `UserError` if there is no such metric.

        One without any number, on data that cannot tell this model, is not.
        """
        if not metrics:
            return False
        value = _good(metrics, _name(metrics, self.metric))
        progress.metrics = metrics
        better = progress.best is None or value > progress.best
        if better:
            progress.best, progress.best_step = value, progress.step
        return better

    def tired(self, progress: Progress, metrics: dict[str, float]) -> str:
        """Why the stage is over, if it has not got better for too long; else nothing, but perhaps a halved rate."""
        if not metrics:
            return ""
        plateau = self.stages[progress.stage].plateau
        name = _name(metrics, None if plateau is None else plateau.metric, self.metric)
        value, patience = _good(metrics, name), self.patience if plateau is None else plateau.patience
        better = progress.watched is None or value > progress.watched
        progress.since_best = 0 if better else progress.since_best + 1
        progress.watched = value if better else progress.watched
        tired = patience is not None and progress.since_best >= patience
        if self.halve and progress.since_best and progress.since_best % self.halve == 0:
            progress.halved += 1
        return f"no better {name} for {patience} evaluations" if tired else ""

    def waits(self, progress: Progress) -> bool:
        """Whether this stage or a later one waits for a plateau."""
        return any(stage.plateau is not None for stage in self.stages[progress.stage :])

    def check(self, metrics: Mapping[str, float]) -> None:
        """Raise `UserError` if a metric that the run or a stage waits for is not there."""
        _name(metrics, self.metric)
        for stage in self.stages:
            if stage.plateau is not None:
                _name(metrics, stage.plateau.metric, self.metric)


def _name(metrics: Mapping[str, float], *wanted: str | None) -> str:
    name = next(filter(None, [*wanted, *metrics]))
    if name not in metrics:
        raise UserError(
            f"no metric {name!r} in the evaluation{suggest(name, metrics)}; there are: {', '.join(metrics)}"
        )
    return name


def _good(metrics: Mapping[str, float], name: str) -> float:
    """A number of which more is better."""
    return -metrics[name] if name.endswith("rank") else metrics[name]
