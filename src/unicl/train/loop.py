"""The training loop: steps, checkpoints, evaluation, and an end that loses nothing."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from unicl.data.stream import Stream
from unicl.errors import UserError
from unicl.model import TwoTowers
from unicl.space import Batch
from unicl.train.board import Board
from unicl.train.cached import cached_step
from unicl.train.chunk import Chunking, find_chunk
from unicl.train.compute import ComputeSettings
from unicl.train.judge import Judge
from unicl.train.optim import Average, OptimSettings, clip, learning_rate, make_optimiser, take_step
from unicl.train.parallel import Parallel, share_buffers
from unicl.train.prepare import prepare
from unicl.train.profiling.profile import Profile, Unwatched
from unicl.train.ranks import Ranks, gather_objects
from unicl.train.record import Progress, Record
from unicl.train.stages import SINGLE, Phases, Stage, Turn, check_shards
from unicl.train.step import Precision, StepResult, plain_step
from unicl.train.watch import agree, guard, interrupts

Evaluate = Callable[[TwoTowers], dict[str, float]]
"""Numbers of a model by name, larger is better but for ranks; called on all ranks at once and equal on all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """How long, how exact, and what is kept.

    * ``steps`` or ``epochs``: the length of the run, or of each stage that has none of its own; steps win.
    * ``save_every``, ``eval_every``: in steps; 0 is only at the end (eval: never without a metric).
    * ``metric``: the number that `best` means; ``patience``: evaluations without a better one that end the run, or its
      stage.
    * ``max_skips``: how many steps with a loss that is not finite are skipped before the run stops; 0 stops at once.
    * ``average``: decay of the moving average of the weights; None is none.
    """

    steps: int | None = None
    epochs: float = 10
    precision: Precision = "fp32"
    seed: int = 0
    average: float | None = None
    save_every: int = 0
    keep: int = 2
    eval_every: int = 0
    metric: str | None = None
    patience: int | None = None
    max_skips: int = 0
    track: tuple[str, ...] = ()

    def length(self, *, epoch_size: int, batch: int) -> int:
        """The steps of the whole run."""
        return self.steps if self.steps is not None else math.ceil(self.epochs * epoch_size / batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: after which step, whether it was interrupted, and the exit status that says so."""

    step: int
    steps: int
    code: int = 0
    metrics: dict[str, float]


def fit(
    model: TwoTowers,
    stream: Stream,
    settings: FitSettings,
    *,
    optim: OptimSettings,
    out: Path,
    ranks: Ranks,
    compute: ComputeSettings = ComputeSettings(),
    evaluate: Evaluate | None = None,
    resume: bool = False,
    quiet: bool = False,
    profile: bool = False,
    stages: Sequence[Stage] = SINGLE,
) -> Outcome:
    """Train one of the ``stages`` to its end and leave a whole checkpoint; raises `UserError` if it cannot go on.

    ``settings``, ``optim`` and the stream are those of the stage: the first, or with ``resume`` the one that the newest
    checkpoint is in. If another one follows, the last checkpoint says that it begins there: call again with ``resume``
    and a model that `Record.begin` has filled.
    A run that was killed and resumed gives bit for bit the run that never stopped (on one kind of CPU, with as many
    processes): every draw of data and of dropout is a function of the seed and the step, so that a checkpoint needs
    no generator state. What ends one process ends all; see `unicl.train.watch`.
    """
    turn = Turn(stages=tuple(stages), number=Record(out=out).progress().stage if resume else 0)
    run = _Run(
        model, stream, settings, optim=optim, out=out, ranks=ranks, compute=compute, evaluate=evaluate, turn=turn
    )
    with guard(ranks=ranks, where=run.where), closing(run.parallel):
        if resume:
            run.resume()
        if profile:
            run.profile()
        with interrupts() as asked, run.board(quiet=quiet) as board:
            return run.go(board, asked)


class _Run:
    """The moving parts of one call of `fit`."""

    def __init__(
        self,
        model: TwoTowers,
        stream: Stream,
        settings: FitSettings,
        *,
        optim: OptimSettings,
        out: Path,
        ranks: Ranks,
        compute: ComputeSettings,
        evaluate: Evaluate | None,
        turn: Turn,
    ) -> None:
        self.model = model.to(ranks.device).train()
        self.stream, self.settings, self.optim, self.ranks, self.evaluate = stream, settings, optim, ranks, evaluate
        self.compute, self.turn = compute, turn
        if ranks.size > 1:
            check_shards(turn.stage, parallel=compute.parallel)
        self.phases = Phases(model, turn.stage)
        self.notes = prepare(model, compute, optim=optim, precision=settings.precision)
        self.watch: Profile | Unwatched = Unwatched()
        self.record = Record(out=out, keep=settings.keep)
        self.parallel = Parallel(model, ranks=ranks, parallel=compute.parallel)
        self.optimiser = make_optimiser(model, optim, apart=self.phases.apart, shares=self.phases.shares)
        self.average = None if settings.average is None else Average(model, decay=settings.average)
        self.length = settings.length(epoch_size=stream.epoch_size, batch=stream.settings.batch)
        self.judge = Judge(
            metric=settings.metric, patience=settings.patience, stages=turn.stages, halve=self.optim.halve
        )
        self.progress = Progress()
        self.begun, self.steps = 0, self.length
        every = settings.eval_every or (
            math.ceil(stream.epoch_size / stream.settings.batch) if turn.stage.plateau or optim.halve else 0
        )
        self.every = every
        self.saved = -1
        self.chunking: Chunking | None = None
        self.say: Callable[[str], None] = print

    def resume(self) -> None:
        keep = self.turn.stage.optimiser == "kept"
        self.progress = self.record.load(self.model, self.optimiser, average=self.average, ranks=self.ranks, keep=keep)
        self.begun = self.progress.begun
        self.steps = self.begun + self.length
        self.saved = self.progress.step
        self.ranks.wait()
        if self.ranks.first:
            self.record.rewind(self.progress.step)

    def profile(self) -> None:
        self.watch = Profile(
            self.model,
            self.record.out / "profile",
            steps=self.steps - self.progress.step,
            batch=self.stream.settings.batch,
            precision=self.settings.precision,
            ranks=self.ranks,
        )

    def board(self, *, quiet: bool) -> Board:
        return Board(
            self.steps,
            start=self.progress.step,
            visible=self.ranks.first and not quiet,
            out=self.record.out,
            trackers=self.settings.track,
            title="training" if len(self.turn.stages) == 1 else self.turn.name(),
        )

    def where(self) -> str:
        """The end of a message about what stopped the run."""
        last = self.record.last()
        kept = "there is no checkpoint yet" if last is None else f"go on from {last} with --resume"
        return f"at step {self.progress.step} ({kept})"

    def go(self, board: Board, asked: list[int]) -> Outcome:
        self.say = board.say
        for note in self.notes:
            self.say(note)
        self.expect(board)
        source = self.stream.batches(self.progress.step - self.begun, stop=self.length)
        with closing(self.watch.read(source, console=board.bar.console)) as batches:
            while self.progress.step < self.steps:
                began = time.monotonic()
                batch = self.take(batches, asked)
                if batch is None:
                    return self.stop(board, asked)
                self.step(batch, board, waited=time.monotonic() - began)
                if self.look(board, asked):
                    break
        if not self.turn.last and self.ranks.any(bool(asked)):
            return self.stop(board, asked)
        self.save()
        return self.outcome()

    def stop(self, board: Board, asked: list[int]) -> Outcome:
        self.save()
        board.say(f"stopped at step {self.progress.step}; go on with --resume")
        return self.outcome(code=128 + (asked or [signal.SIGINT])[0])

    def expect(self, board: Board) -> None:
        """What a stage waits for is there, or is said to be missing before the first step and not after hours."""
        if not self.judge.waits(self.progress):
            return
        if self.evaluate is None:
            self.say("without validation data (--val), a stage that waits for a plateau has its whole length")
        elif not self.progress.metrics:
            self.progress.metrics = self.measured(self.evaluate, board)
            self.judge.check(self.progress.metrics)

    def take(self, batches: Iterator[Batch], asked: list[int]) -> Batch | None:
        """The next batch, or None if any process was asked to stop; raises `UserError` on all if one has no batch."""
        batch: Batch | None = None
        failure: Exception | None = None
        try:
            batch = next(batches)
        except StopIteration:
            failure = UserError("there is no data left, though the run is not over", code=1)
        except Exception as error:
            if self.ranks.size == 1:
                raise
            failure = error
        status = self.ranks.most(2 if batch is None else int(bool(asked)))
        if status == 2:
            agree(failure, ranks=self.ranks, doing=f"reading step {self.progress.step}")
        return None if status == 1 else batch

    def step(self, batch: Batch, board: Board, *, waited: float) -> None:
        began, step = time.monotonic(), self.progress.step
        halved = self.progress.halved
        rate = learning_rate(step - self.begun, steps=self.length, settings=self.optim, halved=halved)
        if self.phases.turn((step - self.begun) / self.length):
            self.parallel.follow()
            self.chunking = None
        self.watch.rehearse(lambda: self.gradient(batch, step))
        with self.watch.part("backward"):
            result = self.gradient(batch, step)
            norm = clip(self.model.parameters(), norm=self.optim.clip)
        if math.isfinite(float(result.loss)) and math.isfinite(float(norm)):
            with self.watch.part("optimiser"):
                self.update(rate)
        else:
            self.skip(batch, result, float(norm), board)
        self.progress.step += 1
        self.progress.samples += self.stream.settings.batch
        self.tell(board, result, rate=rate, norm=float(norm), waited=waited, took=time.monotonic() - began)

    def gradient(self, batch: Batch, step: int) -> StepResult:
        # All that is random in the towers depends on this alone, so that a checkpoint needs no generator state.
        torch.manual_seed((self.settings.seed * 1_000_003 + step) * 1009 + self.ranks.rank)
        self.optimiser.zero_grad(set_to_none=True)
        batch = batch.to(self.ranks.device)
        chunk, take = self.chunk(batch), plain_step
        if chunk is not None:
            take = partial(cached_step, chunk=chunk)
        result = take(
            self.model,
            batch,
            ranks=self.ranks,
            precision=self.settings.precision,
            compute=self.compute,
            sync=self.parallel.sync,
        )
        self.parallel.finish()
        return result

    def chunk(self, batch: Batch) -> int | None:
        """How many rows go through a tower at once; None is all of them."""
        if self.compute.chunk != "auto":
            return self.compute.chunk
        if self.chunking is None:
            precision, sync = self.settings.precision, self.parallel.sync
            self.chunking = find_chunk(
                self.model, batch, ranks=self.ranks, precision=precision, compute=self.compute, sync=sync
            )
            self.say(f"--chunk auto: {self.chunking}")
        return self.chunking.chunk

    def update(self, rate: float) -> None:
        seed = self.settings.seed * 1_000_003 + self.progress.step
        take_step(self.optimiser, rate=rate, seed=seed, factors=self.phases.factors)
        self.model.objective.clamp()
        if self.average is not None:
            self.average.update(self.model, step=self.progress.step)

    def skip(self, batch: Batch, result: StepResult, norm: float, board: Board) -> None:
        """Leave the weights as they were; over the limit, save what would reproduce the step and stop."""
        self.progress.skipped += 1
        ids = [id for each in gather_objects(list(batch.ids), ranks=self.ranks) for id in each]
        parts = {name: float(value) for name, value in result.parts.items()}
        entry = {"step": self.progress.step, "loss": float(result.loss), "norm": norm, "terms": parts, "samples": ids}
        if self.ranks.first:
            self.record.log({"not_finite": {**entry, "loss": str(entry["loss"]), "norm": str(norm)}, **entry})
        if self.progress.skipped > self.settings.max_skips:
            self.save()
            raise UserError(self.not_finite(entry["loss"], norm, ids), code=1)
        board.say(f"step {self.progress.step}: loss {entry['loss']}, gradient norm {norm}: skipped")

    def not_finite(self, loss: object, norm: float, ids: list[str]) -> str:
        some = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        return (
            f"the loss ({loss}) or the gradient norm ({norm}) of step {self.progress.step} is not finite. The weights "
            f"from before that step are saved in {self.record.last()}; its samples are listed in "
            f"{self.record.metrics_path}: {some}. Try a lower --lr, --precision fp32, or --set fit.max_skips=10."
        )

    def tell(self, board: Board, result: StepResult, *, rate: float, norm: float, waited: float, took: float) -> None:
        seconds = max(waited + took, 1e-9)
        scales = {f"scale {n}": s.value for n, s in self.model.objective.scales().items()}
        speed = self.stream.settings.batch / seconds
        shown = {"loss": float(result.loss), **scales, "samples/s": speed, "input wait %": 100 * waited / seconds}
        board.step(self.progress.step, numbers=shown)
        if self.ranks.first:
            terms = (
                {f"loss {name}": float(value) for name, value in result.parts.items()} if len(result.parts) > 1 else {}
            )
            rates = {f"lr {side}": rate * factor for side, factor in self.phases.factors.items() if self.phases.apart}
            stage = {"stage": self.turn.stage.name} if len(self.turn.stages) > 1 else {}
            numbers = {**stage, **shown, **terms, "lr": rate, **rates, "norm": norm}
            self.record.log({"step": self.progress.step, **numbers, "bad samples": len(self.stream.quarantine)})

    def look(self, board: Board, asked: list[int]) -> bool:
        """Evaluate and save where it is time; returns whether the stage is over."""
        every, step = self.every, self.progress.step
        why = f"it has had its {self.length} steps" if step == self.steps else ""
        better, due = False, why or (every and step % every == 0)
        # Who wants to stop does not want to wait for an evaluation, unless it is the last one.
        if self.evaluate is not None and due and (why or not self.ranks.any(bool(asked))):
            metrics = self.measured(self.evaluate, board)
            better = self.progress.best_step == step
            halved, why = self.progress.halved, why or self.judge.tired(self.progress, metrics)
            if self.progress.halved > halved:
                board.say(f"no better evaluation for {self.progress.since_best}: the rate is halved")
        if why:
            self.move_on(why, board)
        if better or why or (self.settings.save_every and step % self.settings.save_every == 0):
            self.save()
        return bool(why)

    def measured(self, evaluate: Evaluate, board: Board) -> dict[str, float]:
        with self.used():
            own = evaluate(self.model)
        self.model.train()
        # What happens next follows from these numbers: those of one process hold for all.
        metrics: dict[str, float] = gather_objects(own, ranks=self.ranks)[0]
        best = self.progress.step > 0 and self.judge.best(self.progress, metrics)
        board.evaluated(self.progress.step, metrics=metrics, best=best)
        if self.ranks.first:
            self.record.log({"step": self.progress.step, "evaluation": metrics})
        return metrics

    def move_on(self, why: str, board: Board) -> None:
        """Say why the stage is over; the checkpoint of this step is then where the next one begins."""
        now, turn = self.progress, self.turn
        if turn.last:
            if now.step < self.steps:
                board.say(f"{why}: stopping early")
            return
        board.say(f"{turn.name()} is over at step {now.step}: {why}; {turn.name(1)} is next")
        if self.ranks.first:
            self.record.log({"step": now.step, "stage": turn.stage.name, "over": why})
        now.stage, now.begun, now.since_best, now.halved, now.watched = now.stage + 1, now.step, 0, 0, None

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model as it will be used: whole, equal on all ranks, and with the moving average if there is one."""
        if self.average is not None:
            self.average.swap(self.model)
        try:
            share_buffers(self.model, ranks=self.ranks)
            with self.parallel.whole():
                yield
        finally:
            if self.average is not None:
                self.average.swap(self.model)

    def save(self) -> None:
        if self.saved != self.progress.step:
            self.record.save(self.model, self.optimiser, progress=self.progress, average=self.average, ranks=self.ranks)
        self.saved = self.progress.step

    def outcome(self, *, code: int = 0) -> Outcome:
        return Outcome(step=self.progress.step, steps=self.steps, code=code, metrics=self.progress.metrics)
