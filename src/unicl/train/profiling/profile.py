"""Where the time of a step goes: measured on the first steps of a run, written as a report and a trace.

The gradient of the first step is taken twice, once to count its FLOPs; the second step warms up; the next ones are
timed part by part; the last one is traced. No number of the run changes.
"""

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, Final, get_args

from rich.console import Console
from torch.profiler import DeviceType, ProfilerActivity, profile, record_function

from unicl.errors import UserError
from unicl.model import TwoTowers
from unicl.space import Batch
from unicl.train.profiling.flops import counter, peak
from unicl.train.profiling.limits import Report
from unicl.train.profiling.spans import Span, length, shared
from unicl.train.profiling.timeline import Part, Timeline
from unicl.train.ranks import Ranks
from unicl.train.step import Precision

LEAST_STEPS: Final = 4
"""One each to count, to warm up, to time and to trace."""
TIMED: Final = 10
Batches = Generator[Batch, None, None]
_START: Final = "profile starts"


class Unwatched:
    """Stands in for a `Profile` in a run that asked for none."""

    def part(self, _: Part, /) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def rehearse(self, _: Callable[[], object], /) -> None:
        """Nothing."""

    def read(self, batches: Batches, *, console: Console | None = None) -> Batches:
        """The batches."""
        del console
        return batches


class Profile:
    """Watches the first steps of a run; ``steps`` is how many it will take, ``batch`` their size over all processes.

    Every process watches itself; the first one writes into the folder ``out``. Raises `UserError` for too few steps.
    """

    def __init__(
        self, model: TwoTowers, out: Path, *, steps: int, batch: int, precision: Precision, ranks: Ranks
    ) -> None:
        if steps < LEAST_STEPS:
            raise UserError(f"--profile needs {LEAST_STEPS} steps, but the run takes {steps}; raise --steps")
        self.model, self.out, self.batch, self.precision, self.ranks = model, out, batch, precision, ranks
        self.timed: Final = min(TIMED, steps - LEAST_STEPS + 1)
        self.timeline: Final = Timeline(ranks.device)
        self.timeline.watch(model)
        self.report: Report | None = None
        self.flops = 0
        self.times: list[tuple[Part, Span]] = []
        self.trace: Any = None
        self.offset = 0.0
        self.contexts: Final = ExitStack()

    def part(self, part: Part) -> AbstractContextManager[None]:
        """Around a part of a step that hooks on the model do not see: "optimiser", or "backward" around all that leads
        to the gradient, of which towers and objective are taken off.
        """
        return self.timeline.part(part) if self.report is None else nullcontext()

    def rehearse(self, gradient: Callable[[], object]) -> None:
        """To be called before a step's gradient is taken, with what will take it; does so once, to count its FLOPs.

        Counted products may be rounded otherwise, so that what they leave on the model is taken back.
        """
        if self.flops or self.report is not None:
            return
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        with counter() as counted:
            gradient()
        self.flops = counted.get_total_flops()
        for buffer, value in buffers:
            buffer.copy_(value)
        self.model.zero_grad(set_to_none=True)
        if self.model.text is not None:
            self.model.text.kept.clear()

    def read(self, batches: Batches, *, console: Console | None = None) -> Batches:
        """The batches; a step lasts from the asking for one to the asking for the next, or to the closing.

        The report is printed on the console as soon as it is there.
        """
        step = 0
        try:
            while self.report is None:
                self._begin(step)
                with self.timeline.part("input"):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
                self._end(step, console)
                step += 1
            yield from batches
        finally:
            if self.report is None:
                self._end(step, console)
            self.timeline.leave()
            batches.close()

    def _begin(self, step: int) -> None:
        if step == LEAST_STEPS - 2:
            self.timeline.begin()
        elif step == LEAST_STEPS - 2 + self.timed:
            # On a machine without a GPU, the tracer's library would say on the terminal that there is none.
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.ranks.device.type == "cuda")
            self.trace = self.contexts.enter_context(profile(activities=kinds))
            self.offset = time.time()
            with record_function(_START):
                self.timeline.begin()

    def _end(self, step: int, console: Console | None) -> None:
        self.timeline.switch("rest")
        self.contexts.close()
        if step == LEAST_STEPS - 3 + self.timed:
            self.times = self.timeline.spans
        elif step == LEAST_STEPS - 2 + self.timed:
            self.report = self._finish()
            self.timeline.leave()
            if self.ranks.first:
                self._write(self.report, console)

    def _finish(self) -> Report:
        names: tuple[Part, ...] = get_args(Part)
        timed = {name: length(_of(name, self.times)) / self.timed for name in names}
        for name, share in self._waiting(names).items():
            timed["communication"] += share * timed[name]
            timed[name] -= share * timed[name]
        return Report(
            seconds=timed,
            steps=self.timed,
            batch=self.batch,
            flops=self.flops,
            peak=peak(self.ranks.device, self.precision),
        )

    def _waiting(self, names: Sequence[Part]) -> Mapping[Part, float]:
        """The share of each part in the traced step in which there are messages under way and no work is done."""
        if self.ranks.size == 1:
            return {}
        messages, work = _messages_and_work(self.trace.events(), offset=self.offset)
        hidden = shared(messages, work)
        shares: dict[Part, float] = {}
        for name in names:
            own = _of(name, self.timeline.spans)
            alone = length(shared(messages, own)) - length(shared(hidden, own))
            shares[name] = alone / max(length(own), 1e-9)
        return shares

    def _write(self, report: Report, console: Console | None) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.trace.export_chrome_trace(str(self.out / "trace.json.gz"))
        (self.out / "profile.md").write_text(report.page(), encoding="utf-8")
        if console is not None:
            console.print(report.table())
            for line in (report.totals(), report.advice, f"the trace in {self.out} opens at ui.perfetto.dev"):
                console.print(line, markup=False, highlight=False, soft_wrap=True)


def _of(name: Part, spans: Sequence[tuple[Part, Span]]) -> list[Span]:
    return [span for part, span in spans if part == name]


def _messages_and_work(events: Sequence[Any], *, offset: float) -> tuple[list[Span], list[Span]]:
    """When messages between processes were under way, and when the device, or the CPU without one, computed."""
    device = DeviceType.CUDA if any(e.device_type == DeviceType.CUDA for e in events) else DeviceType.CPU
    start = next(e.time_range.start for e in events if e.name == _START)
    messages, work = [], []
    for event in (e for e in events if e.device_type == device):
        first, end = (offset + (t - start) / 1e6 for t in (event.time_range.start, event.time_range.end))
        if "nccl" in event.name or event.name.startswith("gloo:"):
            messages.append((first, end))
        elif event.name.startswith("aten::") or (device == DeviceType.CUDA and not event.is_user_annotation):
            work.append((first, end))
    return messages, work
