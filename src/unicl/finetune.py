"""Fine-tuning from start to end: the starting classifier, the run, and the models between, measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree

import torch
from rich.console import Console

from unicl.data.collate import ClassTexts, class_texts
from unicl.data.prompts import read_names
from unicl.data.sources import Source, load_all
from unicl.data.subset import check_fraction, part_of
from unicl.dials import Dials, turned
from unicl.errors import UserError, suggest
from unicl.evaluate.findings import decided
from unicl.evaluate.split import shared_patients
from unicl.model import TwoTowers
from unicl.objective.classify import ClassifySettings, ClassName
from unicl.published import load
from unicl.recipes.finetune import Loss, Uncertain, Unmentioned, finetune, kind_of, layer_of
from unicl.run import Job, classes_of, findings_of, read_job
from unicl.run import train as run
from unicl.towers.text import OWN_NAMES
from unicl.train.loop import Outcome
from unicl.train.ranks import is_first
from unicl.use.head import has_bias, level, with_contrasts, with_head
from unicl.use.points import Asking, Point, measure, model_at, shares_of, table, write

START = "start"
"""The folder of a run that holds the model before its first step."""
UNDECIDED = "no finding is there in some of the images and missing in others"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is fine-tuned on what: see `unicl.cli.adapt.finetune`."""

    model: str
    data: tuple[str, ...]
    val: tuple[str, ...] = ()
    loss: Loss = "auto"
    fraction: float = 1.0
    layer_decay: float = 1.0
    uncertain: Uncertain = "ignored"
    unmentioned: Unmentioned = "absent"
    class_names: str | None = None
    max_bad: int = 100


def begin(asked: Asked, out: Path, *, dials: Dials = Dials(), more: Sequence[str] = ()) -> tuple[Job, TwoTowers]:
    """The job of a new run, and the model that it starts from: with its class texts as a classifier, or as it is.

    Raises `UserError` for data that the loss cannot learn from.
    """
    check_fraction(asked.fraction)
    model, sources = load(asked.model), load_all(asked.data)
    start, val = _start(model, sources, asked, dials), load_all(asked.val)
    _check_val(start, val)
    for said in shared_patients(*([sample for source in of for sample in source.samples] for of in (sources, val))):
        _say(said)
    settings = start.settings
    if settings.text is not None and settings.text.name not in OWN_NAMES:
        # The package that the text model came from may not be on the machine that goes on.
        settings = replace(settings, text=replace(settings.text, name=str(out / START / "text")))
    recipe = turned(finetune(settings, layer_decay=asked.layer_decay, uncertain=asked.uncertain), dials, more=more)
    if any(isinstance(t, ClassifySettings) and t.loss == "sigmoid" for t in recipe.terms) and not has_bias(model):
        parts = [part_of(source, fraction=asked.fraction, seed=recipe.fit.seed) for source in sources]
        level(start, [sample for part in parts for sample in part.samples], progress=True)
    job = Job(
        recipe=recipe,
        data=asked.data,
        val=asked.val,
        class_names=asked.class_names,
        max_bad=asked.max_bad,
        start=str(out / START),
        fraction=asked.fraction,
    )
    return job, start


def fine_tune(
    job: Job, out: Path, *, start: TwoTowers | None, wise: Sequence[float] = (0.5,), device: str = "auto"
) -> Outcome:
    """Train from ``start``, or go on with a run if there is none; then measure on the validation data, if any.

    Measured are the start, the end, and the models at the shares ``wise`` between (WiSE-FT), which are written as
    ``wise-SHARE``. Raises `UserError` as `unicl.run.train` does.
    """
    shares = shares_of(wise)
    _say(_told(job))
    outcome = run(job, out, resume=start is None, device=device, start_from=start)
    if outcome.code or not is_first():
        return outcome
    points = between(job, out, shares=shares, device=device)
    console = Console()
    if points:
        console.print(table(points))
        write(points, out)
    else:
        console.print("nothing is measured without data for it: give some with --val", highlight=False)
    return outcome


def between(job: Job, out: Path, *, shares: Sequence[float], device: str = "auto") -> list[Point]:
    """Write the models between the start of a run and its end, and measure all of them on its validation data."""
    first, last = load(out / START), load(out)
    sources = load_all(job.val) if job.val else ()
    names = None if job.class_names is None else read_names(Path(job.class_names))
    asking = Asking(
        templates=job.recipe.data.prompts,
        names=None if names is None else {label: name.split("|")[0] for label, name in names.items()},
        seed=job.recipe.fit.seed,
        progress=True,
    )
    points = []
    for share in shares:
        model = model_at(first, last, share=share)
        if 0 < share < 1:
            _written(model, out / f"wise-{share:g}")
        model.to("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        points += [Point(share=share, source=s.name, scores=measure(model, s, asking=asking)) for s in sources]
    return sorted(points, key=lambda point: [source.name for source in sources].index(point.source))


def resumed(out: Path, *, dials: Dials = Dials(), more: Sequence[str] = ()) -> Job:
    """The job of a run that was stopped; raises `UserError` if the folder holds none of fine-tuning."""
    job = read_job(out)
    if job.start is None:
        raise UserError(f"{str(out)!r} is no run of fine-tuning; go on with unicl train --resume --out {out}")
    return replace(job, recipe=turned(job.recipe, dials, more=more))


def _say(text: str) -> None:
    if is_first():
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)


def _told(job: Job) -> str:
    """How a job learns, in a line."""
    towers = [stage.image for stage in job.recipe.stages if stage.image is not None]
    layer = next((t for t in job.recipe.terms if isinstance(t, ClassifySettings)), None)
    if layer is None:
        how = "both towers by the model's own contrast with class prompts"
    else:
        loss = "cross-entropy" if layer.loss == "softmax" else "a sigmoid for each"
        texts = ", from their texts" if layer.reads == "whole" else ""
        tower = "" if towers and all(each.never for each in towers) else "the image tower and "
        how = f"{tower}a layer over the {layer.of} by {loss}{texts}"
    decay = {each.decay for each in towers} - {1.0}
    slower = f"; rates x {min(decay):g} from a block to the one before" if decay else ""
    return f"fine-tuning {how}{slower}"


def _start(model: TwoTowers, sources: Sequence[Source], asked: Asked, dials: Dials) -> TwoTowers:
    findings = _asks_findings(sources, loss=asked.loss)
    several = any(len(sample.labels) > 1 for source in sources for sample in source.samples)
    kind = kind_of(asked.loss, texts=model.text is not None, several=several, findings=findings)
    if kind == "contrast":
        _told_apart(sources)
        return with_contrasts(model)
    return with_head(
        model,
        _classes(sources, findings=findings),
        settings=layer_of(kind, findings=findings, unmentioned=asked.unmentioned),
        texts=_texts(asked.class_names, dials),
        generator=torch.Generator().manual_seed(dials.seed or 0),
    )


def _check_val(start: TwoTowers, val: Sequence[Source]) -> None:
    """Raise `UserError` for data to measure on that the layer of a model cannot tell, before hours of training."""
    layer = next((t for t in start.settings.terms if isinstance(t, ClassifySettings)), None)
    if layer is None:
        return
    known = {one.label for one in start.settings.classes}
    for source in val:
        if layer.of == "findings":
            if not any(name in known for sample in source.samples for name, _ in sample.findings):
                raise UserError(
                    f"{source.name} (--val) has none of the findings that are learned, such as {min(known)!r}; name "
                    "them: 'PATH?findings=*'"
                )
            if not known & set(decided(source.samples)):
                raise UserError(f"{source.name} (--val): {UNDECIDED}, so that nothing could be measured on it")
            continue
        strange = sorted({label for sample in source.samples for label in sample.labels} - known)
        if strange:
            raise UserError(
                f"{source.name} (--val) has the class {strange[0]!r}{suggest(strange[0], known)}, which is not in the "
                "training data and cannot be told by its layer; leave it out, or take --loss unicl"
            )


def _asks_findings(sources: Sequence[Source], *, loss: Loss) -> bool:
    """Whether findings are learned, and not labels; raises `UserError` if there are neither."""
    samples = [sample for source in sources for sample in source.samples]
    findings, labels = any(s.findings for s in samples), any(s.labels for s in samples)
    if not (findings or labels):
        raise UserError("the data has neither labels nor findings; name a column: 'PATH?label=COLUMN' or '?findings=*'")
    return findings and (loss in ("auto", "sigmoid") or not labels)


def _classes(sources: Sequence[Source], *, findings: bool) -> tuple[ClassName, ...]:
    if not findings:
        return _told_apart(sources)
    if not any(decided(source.samples) for source in sources):
        raise UserError(f"{UNDECIDED}, so that there is nothing to learn; give data of both kinds")
    tables = {frozenset(name for name, _ in s.findings) for source in sources for s in source.samples if s.findings}
    if len(tables) > 1:
        first, second = sorted(tables, key=len)[:2]
        odd = sorted(first ^ second)[0]
        raise UserError(
            f"the finding {odd!r} is in one table and not in another, where nobody asked for it; name the same "
            "findings of each: 'PATH?findings=A,B'"
        )
    return findings_of(sources)


def _told_apart(sources: Sequence[Source]) -> tuple[ClassName, ...]:
    """The classes of the data; raises `UserError` for a single one, from which nothing is told apart."""
    classes = classes_of(sources)
    if len(classes) < 2:
        raise UserError(f"there is only one class, {classes[0].label!r}; give pictures of others as well")
    return classes


def _texts(class_names: str | None, dials: Dials) -> ClassTexts:
    names = {} if class_names is None else read_names(Path(class_names))
    return class_texts(dials.prompts or "auto", names={label: name.split("|") for label, name in names.items()})


def _written(model: TwoTowers, folder: Path) -> None:
    rmtree(folder, ignore_errors=True)
    model.save(folder)
