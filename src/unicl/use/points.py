"""What fine-tuning gained: models between its start and its end (WiSE-FT), measured on data that were held back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from unicl.data.prompts import Prompts
from unicl.data.sources import Source
from unicl.errors import UserError
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.exact import require_finite
from unicl.evaluate.known import Known, area_statistic
from unicl.evaluate.pictures import distinct_images, embed_pictures
from unicl.evaluate.report import Score, figure
from unicl.evaluate.run import evaluate
from unicl.evaluate.scoring import measured
from unicl.evaluate.split import patients_of
from unicl.model import TwoTowers
from unicl.objective.classify import Classify, ClassifySettings
from unicl.use.merge import interpolate

HEADLINES = ("zeroshot/top1", "findings/auc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The numbers of one model on one source; ``share`` is that of the end in its weights, 0 is the start."""

    share: float
    source: str
    scores: tuple[Score, ...]

    @property
    def headline(self) -> Score:
        """The number that tables and plots show."""
        return next(score for score in self.scores if score.key in HEADLINES)

    @property
    def name(self) -> str:
        """The model, for people."""
        return {0.0: "zero-shot, before", 1.0: "fine-tuned"}.get(self.share, "weights between (WiSE-FT)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How models are measured: ``templates`` and ``names`` of classes as in `unicl.evaluate.run.evaluate`."""

    templates: Prompts | str = "auto"
    names: Mapping[str, str] | None = None
    seed: int = 0
    batch: int = 64
    progress: bool = False


def shares_of(wise: Sequence[float]) -> tuple[float, ...]:
    """The shares to measure, both ends among them; raises `UserError` for one that lies beyond an end."""
    for share in wise:
        if not 0 <= share <= 1:
            raise UserError(f"--wise {share:g} is the share of the fine-tuned weights, from 0 to 1; .5 lies halfway")
    return tuple(sorted({0.0, 1.0, *wise}))


def model_at(start: TwoTowers, end: TwoTowers, *, share: float) -> TwoTowers:
    """The model whose weights lie at a share between two (Wortsman et al. 2022, equation 1); the ends as they are."""
    return {0.0: start, 1.0: end}.get(share) or interpolate(start, end, alpha=share)


def measure(model: TwoTowers, source: Source, *, asking: Asking) -> tuple[Score, ...]:
    """Top-1 and the other numbers of classes, or the area under the ROC curve of a model that knows findings."""
    layer = next((t for t in model.settings.terms if isinstance(t, ClassifySettings)), None)
    if layer is not None and layer.of == "findings":
        return _areas(model, source, layer=layer, asking=asking)
    report = evaluate(
        model,
        [source],
        tasks=("zeroshot",),
        # A model without texts has its own names.
        names=asking.names if model.text is not None else None,
        templates=asking.templates,
        seed=asking.seed,
        batch=asking.batch,
        mistakes=0,
        progress=asking.progress,
    )
    return report.results[0].scores


def table(points: Sequence[Point]) -> Table:
    """The first number of each point with its interval, source by source."""
    shown = Table()
    for column in ("data", "model"):
        shown.add_column(column)
    for column in ("share", points[0].headline.name, "95% interval", "n"):
        shown.add_column(column, justify="right")
    for point in points:
        one = point.headline
        interval = f"{figure(one, one.low)} to {figure(one, one.high)}"
        shown.add_row(
            escape(point.source), point.name, f"{point.share:g}", figure(one, one.value), interval, f"{one.n:,}"
        )
    return shown


def write(points: Sequence[Point], out: Path) -> None:
    """finetune.json, finetune.md and finetune.svg; raises `UserError` if they cannot be written."""
    content = [
        {"share": p.share, "source": p.source, "model": p.name, "scores": [asdict(score) for score in p.scores]}
        for p in points
    ]
    try:
        (out / "finetune.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (out / "finetune.md").write_text(_markdown(points), encoding="utf-8")
        _plot(points, out / "finetune.svg")
    except OSError as error:
        raise UserError(f"cannot write into {str(out)!r}: {error.strerror or error}", code=1) from error


def _areas(model: TwoTowers, source: Source, *, layer: ClassifySettings, asking: Asking) -> tuple[Score, ...]:
    own = next(term for term in model.objective.terms.values() if isinstance(term, Classify))
    samples = [sample for sample in distinct_images([source]) if sample.findings]
    if not samples:
        raise UserError(f"{source.name} has no image with findings to measure on; name them: 'PATH?findings=*'")
    pictures = embed_pictures(model, samples, batch=asking.batch, progress=asking.progress)
    scores_NC = pictures.classes @ model.classifier(own.labels, templates=("{}",)).T
    known = Known.of(pictures.samples, own.labels, unmentioned=layer.unmentioned)
    require_finite(scores_NC, what="images' scores of findings")
    patients = patients_of(pictures.samples)
    return _area_scores(scores_NC, known, names=own.labels, patients=patients, seed=asking.seed)


def _area_scores(
    scores_NC: Tensor, known: Known, *, names: Sequence[str], patients: Sequence[str], seed: int
) -> tuple[Score, ...]:
    statistic, bootstrap = area_statistic(scores_NC, known), Bootstrap(seed=seed)
    numbers = measured(statistic, samples=len(scores_NC), bootstrap=bootstrap, patients=patients)
    keys = [("findings/auc", "mean AUC"), *((f"findings/auc/{name}", name) for name in names)]
    counts = [len(scores_NC), *known.asked.sum(0).tolist()]
    found = [
        Score(key=key, name=name, value=value, low=low, high=high, n=n, unit="fraction")
        for (key, name), (value, low, high), n in zip(keys, numbers, counts, strict=True)
        if value == value  # a finding that all have, or none, has no area
    ]
    if not found:
        raise UserError(
            "no finding of the validation data is there in one image and not in another; nothing to measure"
        )
    return tuple(found)


def _markdown(points: Sequence[Point]) -> str:
    heads = [score.name for score in points[0].scores]
    lines = [f"| data | model | share | {' | '.join(heads)} |", "| --- | --- | ---: |" + " ---: |" * len(heads)]
    for point in points:
        numbers = [f"{figure(s, s.value)} ({figure(s, s.low)} to {figure(s, s.high)})" for s in point.scores]
        source = " ".join(point.source.split()).replace("|", "\\|")
        lines.append(f"| {source} | {point.name} | {point.share:g} | {' | '.join(numbers)} |")
    return "# Fine-tuning\n\n" + "\n".join(lines) + "\n\n![between start and end](finetune.svg)\n"


def _plot(points: Sequence[Point], path: Path) -> None:
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "finetune", "text.parse_math": False, "font.size": 9.0}):
        plot = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = plot.subplots()
        for source in dict.fromkeys(point.source for point in points):
            own = [point for point in points if point.source == source]
            factor = 100 if own[0].headline.unit == "percent" else 1
            values, low, high = ([factor * getattr(p.headline, end) for p in own] for end in ("value", "low", "high"))
            shares = [point.share for point in own]
            axes.plot(shares, values, marker="o", label=source)
            axes.fill_between(shares, low, high, alpha=0.15)
        axes.set_xlabel("share of the fine-tuned weights (0: start, 1: end)")
        axes.set_ylabel(points[0].headline.name + (", %" if points[0].headline.unit == "percent" else ""))
        # Nothing is above all; the rest of the axis is where the values are.
        axes.set_ylim(top=min(axes.get_ylim()[1], 101.0 if points[0].headline.unit == "percent" else 1.01))
        axes.legend(frameon=False)
        plot.savefig(path, format="svg", metadata={"Date": None})
