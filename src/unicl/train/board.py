"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere, and trackers if asked."""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unicl.errors import UserError, suggest

TRACKERS = ("tensorboard", "wandb")


class Board(AbstractContextManager["Board"]):
    """Shows the steps of a run as they happen; silent on all ranks but the first."""

    def __init__(
        self, steps: int, *, start: int, visible: bool, out: Path, trackers: Sequence[str] = (), title: str = "training"
    ) -> None:
        self.visible = visible
        self.steps = steps
        self.console = Console(stderr=True, quiet=not visible, highlight=False)
        self.live = visible and self.console.is_terminal
        self.bar = Progress(
            TextColumn(title, style="bold"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("", total=steps, completed=start, numbers="")
        self.trackers = [_tracker(name, out) for name in trackers] if visible else []
        self.began = self.printed = time.monotonic()
        self.start = start

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        for tracker in self.trackers:
            tracker.close()

    def step(self, step: int, *, numbers: Mapping[str, float]) -> None:
        """Show a finished step (counted from 1)."""
        shown = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
        if self.live:
            self.bar.update(self.task, completed=step, numbers=shown)
        elif self.visible and (time.monotonic() - self.printed > 10 or step in (self.start + 1, self.steps)):
            self.printed = time.monotonic()
            self.console.print(
                f"step {step}/{self.steps}  {shown}  left {self._left(step)}", markup=False, soft_wrap=True
            )
        self._track(step, numbers)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(message, markup=False, soft_wrap=True)

    def evaluated(self, step: int, *, metrics: Mapping[str, float], best: bool) -> None:
        """Show the numbers of an evaluation."""
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say(f"step {step}: {shown}{'  (best so far)' if best else ''}")
        self._track(step, metrics)

    def _track(self, step: int, numbers: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(numbers, step)

    def _left(self, step: int) -> str:
        done = step - self.start
        seconds = (time.monotonic() - self.began) / max(done, 1) * (self.steps - step)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class _TensorBoard:
    def __init__(self, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(out / "tensorboard"))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, out: Path) -> None:
        import wandb

        self.run: Any = wandb.init(dir=str(out), name=out.name, resume="allow")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


def _tracker(name: str, out: Path) -> _TensorBoard | _WandB:
    if name not in TRACKERS:
        raise UserError(f"unknown tracker {name!r}{suggest(name, TRACKERS)}; known: {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise UserError(f"--track {name} needs the package {name!r}: pip install {name}")
    return _TensorBoard(out) if name == "tensorboard" else _WandB(out)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
