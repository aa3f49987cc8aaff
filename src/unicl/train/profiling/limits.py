"""What a profile says: the share of each part of a step, what limits it, and what to do about that."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from rich.table import Table

from unicl.train.profiling.flops import Peak
from unicl.train.profiling.timeline import Part

Limit = Literal["input", "towers", "loss", "communication", "optimiser", "rest"]

GROUPS: Final = MappingProxyType[Limit, tuple[Part, ...]](
    {
        "input": ("input",),
        "towers": ("image tower", "text tower", "backward"),
        "loss": ("objective",),
        "communication": ("communication",),
        "optimiser": ("optimiser",),
        "rest": ("rest",),
    }
)
ADVICE: Final = MappingProxyType[Limit, tuple[str, str]](
    {
        "input": (
            "of a step waits for images",
            "more --workers, or smaller images once and for all with `unicl shard --resize 256`",
        ),
        "towers": (
            "of a step is spent in the towers, as it should be",
            "what makes them cheaper is --precision bf16 and --compile on a GPU, a smaller --image-size, "
            "--set image.patch_drop=0.5, or --lock-image",
        ),
        "loss": (
            "of a step is spent in the objective",
            "a larger --keep-mb computes fewer scores twice; a smaller --width makes each cheaper",
        ),
        "communication": (
            "of a step waits for other processes",
            "more rows on each process (--batch with --chunk) give a message more work to hide behind; "
            "see that no process has a slower disk or processor",
        ),
        "optimiser": (
            "of a step is spent on the update",
            "a larger --batch takes fewer of them for the same samples",
        ),
        "rest": (
            "of a step is spent outside of it, on evaluation, checkpoints and messages",
            "a larger --eval-every and --save-every take fewer of them",
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Seconds of each part of a step, the mean of ``steps``, for a batch over all processes.

    ``flops`` are those of one step of this process, ``peak`` what its device could do in a second.
    """

    seconds: Mapping[Part, float]
    steps: int
    batch: int
    flops: int
    peak: Peak

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return max(sum(self.seconds.values()), 1e-9)

    @property
    def mfu(self) -> float:
        """Model FLOP utilisation: the share of the device's peak that was used over the whole step."""
        return self.flops / self.step / self.peak.flops

    @property
    def shares(self) -> dict[Limit, float]:
        """What part of a step goes where."""
        return {limit: sum(self.seconds[part] for part in parts) / self.step for limit, parts in GROUPS.items()}

    @property
    def limit(self) -> Limit:
        """Where most of a step goes."""
        return max(self.shares, key=lambda limit: self.shares[limit])

    @property
    def advice(self) -> str:
        """What limits, and what to do, in a sentence."""
        what, remedy = ADVICE[self.limit]
        limit = "limit" if self.limit == "towers" else "limits"
        return f"{self.limit} {limit}: {self.shares[self.limit]:.0%} {what}; {remedy}."

    def rows(self) -> list[tuple[str, str, str]]:
        """Part, milliseconds and share."""
        return [(part, f"{1000 * s:.1f}", f"{s / self.step:.1%}") for part, s in self.seconds.items()]

    def totals(self) -> str:
        """Speed and utilisation in a line."""
        return (
            f"{self.batch / self.step:.1f} samples/s, {1000 * self.step:.1f} ms a step of {self.batch} "
            f"(mean of {self.steps}), {self.flops / 1e9:.4g} GFLOP a step and process, MFU {self.mfu:.1%} of "
            f"{self.peak.flops / 1e12:.3g} TFLOP/s ({self.peak.source})"
        )

    def table(self) -> Table:
        """For the terminal."""
        table = Table("part of a step", title="profile")
        table.add_column("ms", justify="right")
        table.add_column("share", justify="right")
        for row in self.rows():
            table.add_row(*row)
        return table

    def page(self) -> str:
        """The same as Markdown."""
        lines = ["| part of a step | ms | share |", "| --- | ---: | ---: |"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows()]
        return "\n".join(["# Profile", "", self.advice, "", self.totals(), "", *lines, ""])
