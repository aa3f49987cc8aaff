"""What a run leaves on disk: whole checkpoints that resume exactly, and metrics line by line."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from unicl.errors import UserError
from unicl.model import TwoTowers, read_settings
from unicl.train.optim import Average
from unicl.train.parallel import place
from unicl.train.ranks import Ranks
from unicl.train.stages import at_size_of
from unicl.train.state import STATE, keep_states, load_state, load_weights, read_weights, save_state, whole_state
from unicl.train.watch import broken, together


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a run is: what a checkpoint holds besides weights and the optimiser.

    ``stage`` is the number of the stage to go on with, which began after step ``begun``; ``watched`` is the best value
    in it of what it ends by, ``since_best`` how many evaluations did not reach that, and ``halved`` how often the
    rate was halved for it.
    """

    step: int = 0
    stage: int = 0
    begun: int = 0
    watched: float | None = None
    best: float | None = None
    best_step: int | None = None
    since_best: int = 0
    halved: int = 0
    skipped: int = 0
    samples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def switched(self) -> bool:
        """Whether the checkpoint is the end of one stage, from which the next one begins."""
        return self.stage > 0 and self.step == self.begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The folder of a run: ``checkpoints/step-N`` (a model folder and what resuming needs), ``run.json``, metrics."""

    out: Path
    keep: int = 2

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line: training steps and evaluations."""
        return self.out / "metrics.jsonl"

    def save(
        self,
        model: TwoTowers,
        optimiser: torch.optim.Optimizer,
        *,
        progress: Progress,
        average: Average | None,
        ranks: Ranks = Ranks(),
    ) -> Path:
        """Write a checkpoint that is either whole or absent, then point ``run.json`` at it and drop the old ones.

        Called by all processes at once. Raises `UserError` on all of them if one cannot write.
        """
        final = self._folder(progress.step)
        part = final.with_name(final.name + ".part")
        try:
            self._write(part, model, optimiser, progress=progress, average=average, ranks=ranks)
            with together(ranks=ranks, doing="saving"):
                if ranks.first:
                    self._finish(part, final, progress)
        except (OSError, RuntimeError, SafetensorError, UserError) as error:
            if ranks.first:
                shutil.rmtree(part, ignore_errors=True)
            if broken(error):
                raise
            raise UserError(self._unsaved(progress.step, error), code=1) from error
        if ranks.first:
            self._prune(progress)
        return final

    def load(
        self,
        model: TwoTowers,
        optimiser: torch.optim.Optimizer,
        *,
        average: Average | None,
        ranks: Ranks = Ranks(),
        keep: bool = False,
    ) -> Progress:
        """Bring everything back to the newest checkpoint, or start from nothing if there is none.

        It may have been written by another number of processes, and with the model in whole or in parts. If it ends a
        stage, the model has its weights by `begin`, and the optimiser starts anew unless it is to ``keep`` its states.
        """
        folder = self.last()
        if folder is None:
            return Progress()
        with _reading(folder):
            progress, used = self.progress(), load_file(folder / "model.safetensors")
            if progress.switched:
                used = dict(at_size_of(model, used, before=read_settings(folder / "config.json").image))
                if keep:
                    keep_states(folder / STATE, model, optimiser, ranks=ranks)
            else:
                load_state(folder / STATE, model, optimiser, weights=average is not None, ranks=ranks)
            if average is not None:
                like = average.state
                average.load({name: place(value, like=like[name]) for name, value in used.items() if name in like})
            elif not progress.switched:
                load_weights(model, used)
        return progress

    def progress(self) -> Progress:
        """Where the newest checkpoint is; the start if there is none."""
        folder = self.last()
        if folder is None:
            return Progress()
        with _reading(folder):
            return Progress(**json.loads((folder / "state.json").read_text()))

    def begin(self, model: TwoTowers) -> None:
        """Give a whole model, new in its stage, the weights that go on learning, for images of its own size."""
        folder = self.last()
        if folder is None:
            return
        with _reading(folder):
            weights = read_weights(folder / STATE) or load_file(folder / "model.safetensors")
            before = read_settings(folder / "config.json").image
            model.load_state_dict(dict(at_size_of(model, weights, before=before)))

    def last(self) -> Path | None:
        """The newest whole checkpoint."""
        whole = [p for p in self.out.glob("checkpoints/step-*") if p.suffix != ".part" and (p / "state.json").is_file()]
        return max(whole, key=lambda p: p.name, default=None)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Add a line to the metrics."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def point(self, progress: Progress) -> None:
        """Say in ``run.json`` which checkpoint is the last and which the best; replaced in one move."""
        best = progress.best_step if progress.best_step is not None else progress.step
        content = {"last": f"step-{progress.step:08d}", "best": f"step-{best:08d}", "metrics": progress.metrics}
        replace_text(self.out / "run.json", json.dumps(content, indent=2) + "\n")

    def _folder(self, step: int) -> Path:
        return self.out / "checkpoints" / f"step-{step:08d}"

    def _write(
        self,
        folder: Path,
        model: TwoTowers,
        optimiser: torch.optim.Optimizer,
        *,
        progress: Progress,
        average: Average | None,
        ranks: Ranks,
    ) -> None:
        # What is used is the average; what goes on learning is the model itself.
        used = model.state_dict() if average is None else average.state
        whole = whole_state(used, keep=ranks.first)
        with together(ranks=ranks, doing="saving"):
            if ranks.first:
                shutil.rmtree(folder, ignore_errors=True)
                model.save(folder, weights=whole)
                (folder / "state.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")
        save_state(folder / STATE, model, optimiser, weights=average is not None, ranks=ranks)

    def _finish(self, part: Path, final: Path, progress: Progress) -> None:
        sync(part)
        if final.exists():
            shutil.rmtree(final)
        part.rename(final)
        self.point(progress)

    def _prune(self, progress: Progress) -> None:
        kept = sorted((self.out / "checkpoints").glob("step-????????"))
        for old in kept[: -self.keep]:
            if old.name != f"step-{progress.best_step or -1:08d}":
                shutil.rmtree(old, ignore_errors=True)

    def rewind(self, step: int) -> None:
        """Forget the metrics of steps that will be taken again, and a line that was cut off."""
        if self.metrics_path.is_file():
            lines = self.metrics_path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            replace_text(self.metrics_path, "".join(line + "\n" for line in kept))

    def _unsaved(self, step: int, error: Exception) -> str:
        last = self.last()
        safe = f"the last whole checkpoint is {last}" if last is not None else "there is no earlier checkpoint"
        return f"cannot save step {step}: {error}; {safe}. Free some space and go on with --resume."


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if broken(error):
            raise
        raise UserError(f"cannot resume from {folder}: {error}; was the recipe changed since?") from error


def replace_text(path: Path, content: str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one and nothing between."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def sync(path: Path) -> None:
    """Bring a file, or a folder with all its files, and its entry to the disk."""
    for one in [*path.rglob("*"), path, path.parent]:
        handle = os.open(one, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
