"""How many labels it takes: a linear probe, fine-tuning from class texts, and fine-tuning from a random head.

Emoji by two artists. A CLIP is made of ImageNet's EfficientNet-Lite0, locked, and a text tower from scratch, on
drawings by the first artist with what they show in words. Drawings by the second have labels: one of five groups
(accuracy), or 22 findings (the mean area under the ROC curve): what people do with a thing, and the colours of the
drawing. Of these, 1, 10 and 100 % are learned from. In each seed 300 things are held out for the test, of which no
drawing by either artist was seen before. "From class texts" is `unicl finetune`: UniCL's contrast for classes, and for
findings a sigmoid that starts as their texts. A random head is a layer on the same tower's features, from small random
weights, by cross-entropy, or by a sigmoid for findings. Fine-tuning trains all weights of the image tower; "halfway" is
the model whose weights lie in the middle between the start and the end. Each way has one rate, the best of a few on a
seed of its own at 10 % of the labels.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from unpaired import COLOURS, LEAST, USES

from unicl.data.image import decode
from unicl.data.sources import load, load_all
from unicl.data.subset import part_of
from unicl.demo.emoji import TEST_ARTIST, TRAIN_ARTIST, EmojiSet, build, default_folder
from unicl.demo.systems import IMAGE, TEXT, systems
from unicl.dials import Dials
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.run import evaluate
from unicl.finetune import Asked, begin
from unicl.model import TwoTowers, load_model
from unicl.objective.classify import ClassifySettings
from unicl.recipes.finetune import finetune
from unicl.run import Job, classes_of, findings_of, train
from unicl.space import ImageSource
from unicl.use.points import HEADLINES, Asking, measure, model_at

Of = Literal["classes", "findings"]
OFS: Final[Mapping[Of, str]] = {"classes": "5 classes: accuracy, %", "findings": "22 findings: mean AUC x 100"}
WAYS: Final = {
    "probe": "linear probe",
    "texts": "fine-tuned, from class texts",
    "between": "the same, halfway (WiSE-FT)",
    "random": "fine-tuned, from a random head",
}
FRACTIONS: Final = (0.01, 0.1, 1.0)
RATES: Final[Mapping[tuple[str, Of], float]] = {
    ("texts", "classes"): 3e-4,
    ("texts", "findings"): 3e-3,
    ("random", "classes"): 1e-3,
    ("random", "findings"): 1e-3,
}
"""The best of 1e-4, 3e-4, 1e-3 and 3e-3: `--rates` tries them."""
SIZE: Final = 96
HELD_OUT: Final = 300
TUNING_SEED: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long is learned: ``pairs`` steps of CLIP; of fine-tuning ``epochs``, but no less than ``least`` steps."""

    pairs: int = 250
    epochs: int = 6
    least: int = 40
    batch: int = 32
    seeds: int = 3


QUICK: Final = Length(pairs=5, epochs=1, least=2, seeds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One row of the tables of a seed: a drawing, what it shows in words, its group and its findings."""

    image: Path
    title: str
    category: str
    group: str
    findings: frozenset[str]

    @property
    def captions(self) -> tuple[str, ...]:
        """What may be written beside it: its name, its kind, its group, its use or a colour."""
        return tuple(dict.fromkeys((self.title, self.category, self.group, *sorted(self.findings))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run: what is learned, how, from how much, and by which seed."""

    of: Of
    way: str
    fraction: float
    seed: int
    rate: float | None = None


def colours(image: ImageSource) -> set[str]:
    """The colours of which a drawing has enough; white is the paper."""
    pixels = decode(image).permute(1, 2, 0).reshape(-1, 3).double().numpy()
    drawn = pixels[pixels.min(1) < 240]
    nearest = np.square(drawn[:, None] - np.array(list(COLOURS.values()))[None]).sum(2).argmin(1)
    shares = np.bincount(nearest, minlength=len(COLOURS)) / max(len(drawn), 1)
    return {name for name, share in zip(COLOURS, shares, strict=True) if share >= LEAST}


def things(emoji: EmojiSet, artist: str) -> list[Thing]:
    """Every thing as one artist drew it, in an order that both share."""
    uses = {category.strip(): use for use, several in USES.items() for category in several.split(",")}
    found = []
    for path in (emoji.seen, emoji.unseen):
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                image = emoji.folder / "images" / artist / Path(row["file"]).name
                use = {f"to {uses[row['category']]}"} if row["category"] in uses else set()
                group = row["group"].replace("&", "and").lower()
                findings = frozenset(use | colours(image))
                found.append(
                    Thing(image=image, title=row["title"], category=row["category"], group=group, findings=findings)
                )
    return found


def write(rows: Sequence[Thing], path: Path, *, captions: bool = False) -> None:
    """A table for the library: images with captions, or with a label and all findings."""
    names = [*(f"to {use}" for use in USES), *COLOURS]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("image", "caption") if captions else ("image", "label", *(f"finding:{name}" for name in names))
        )
        for row in rows:
            if captions:
                writer.writerows((row.image, caption) for caption in row.captions)
            else:
                writer.writerow((row.image, row.group, *(int(name in row.findings) for name in names)))


def prompts(home: Path) -> str:
    """A file with one template: captions are names and nothing around them, so that no other word was ever learned."""
    path = home / "prompts.txt"
    path.write_text("{}\n", encoding="utf-8")
    return str(path)


def prepare(seed: int, *, out: Path, length: Length) -> None:
    """The tables of a seed, and the CLIP that all ways start from."""
    _quietly()
    emoji = build(default_folder(), say=lambda *_: None)
    first, second = (things(emoji, artist) for artist in (TRAIN_ARTIST, TEST_ARTIST))
    order = np.random.default_rng([13, seed]).permutation(len(second)).tolist()
    home = out / str(seed)
    home.mkdir()
    write([second[k] for k in order[:HELD_OUT]], home / "test.csv")
    write([second[k] for k in order[HELD_OUT:]], home / "labelled.csv")
    write([first[k] for k in order[HELD_OUT:]], home / "pairs.csv", captions=True)
    made = systems(steps=length.pairs)["clip"]
    recipe = replace(
        made,
        image=replace(IMAGE, size=SIZE),
        text=TEXT,
        data=replace(made.data, keys="text", prompts=prompts(home)),
        fit=replace(made.fit, seed=seed),
    )
    train(Job(recipe=recipe, data=(f"{home}/pairs.csv?root=/",)), home / "clip", device="cpu")


def learned(task: Task, *, out: Path, length: Length) -> dict[str, float]:
    """By way, the number that one run ends with, on the things that were held out."""
    _quietly()
    home = out / str(task.seed)
    if task.way == "probe":
        return {"probe": probed(task, home)}
    # Findings and labels stand in one table, of which a run is given one.
    data, test = (f"{home}/{name}.csv?{_columns(task.of)}" for name in ("labelled", "test"))
    run = home / f"{task.of}-{task.way}-{task.fraction:g}-{task.rate or 0:g}"
    job, start = started(task, data, run)
    [part] = [part_of(source, fraction=task.fraction, seed=task.seed) for source in load_all(job.data)]
    steps = max(length.epochs * len(part.samples) // length.batch, length.least)
    recipe = replace(
        job.recipe,
        data=replace(job.recipe.data, batch=min(length.batch, len(part.samples)), workers=1),
        optim=replace(job.recipe.optim, lr=task.rate or RATES[task.way, task.of], warmup=steps // 10),
        fit=replace(job.recipe.fit, steps=steps),
    )
    train(replace(job, recipe=recipe), run, start_from=start, device="cpu")
    models = {task.way: load_model(run)}
    if task.way == "texts":
        models["between"] = model_at(load_model(run / "start"), load_model(run), share=0.5)
    return {way: value_of(model, test, home=home) for way, model in models.items()}


def value_of(model: TwoTowers, test: str, *, home: Path) -> float:
    """Accuracy, or the mean area, of a model that was fine-tuned."""
    scores = measure(model, load(test), asking=Asking(templates=prompts(home)))
    return next(score.value for score in scores if score.key in HEADLINES)


def started(task: Task, data: str, run: Path) -> tuple[Job, TwoTowers]:
    """The run and the model that it starts from: as `unicl finetune` has it, or without what texts know."""
    clip = run.parent / "clip"
    if task.way == "texts":
        asked = Asked(model=str(clip), data=(data,), fraction=task.fraction)
        job, start = begin(asked, run, dials=Dials(prompts=prompts(run.parent)))
        return replace(job, recipe=replace(job.recipe, fit=replace(job.recipe.fit, seed=task.seed))), start
    model, sources = load_model(clip), load_all([data])
    term = ClassifySettings(
        loss="softmax" if task.of == "classes" else "sigmoid", of="labels" if task.of == "classes" else "findings"
    )
    names = classes_of(sources) if task.of == "classes" else findings_of(sources)
    given = replace(
        model.settings, image=replace(model.settings.image, locked=False), text=None, terms=(term,), classes=names
    )
    torch.manual_seed(task.seed)
    start = TwoTowers(given, tokenizer=None, image=model.image).eval()
    recipe = finetune(given)
    job = Job(
        recipe=replace(recipe, fit=replace(recipe.fit, seed=task.seed)),
        data=(data,),
        start=str(run / "start"),
        fraction=task.fraction,
    )
    return job, start


def probed(task: Task, home: Path) -> float:
    """Logistic regression on the features of the tower as it is: CLIP's for classes, one for each finding."""
    data, test = (load(f"{home}/{name}.csv?{_columns(task.of)}") for name in ("labelled", "test"))
    part = [part_of(data, fraction=task.fraction, seed=task.seed)]
    found = evaluate(
        load_model(home / "clip"),
        [test],
        tasks=("probe" if task.of == "classes" else "findings",),
        train_sources=part,
        templates=prompts(home),
        seed=task.seed,
        bootstrap=Bootstrap(resamples=10),
        mistakes=0,
        cache=home.parent / "features",
    ).numbers()
    return found["probe/top1" if task.of == "classes" else "findings/probe100/mean"]


def before(of: Of, seed: int, *, out: Path) -> float:
    """What the model says without any label, by the names of classes or findings."""
    _quietly()
    home = out / str(seed)
    found = evaluate(
        load_model(home / "clip"),
        [load(f"{home}/test.csv?{_columns(of)}")],
        tasks=("zeroshot" if of == "classes" else "findings",),
        templates=prompts(home),
        bootstrap=Bootstrap(resamples=10),
        mistakes=0,
        cache=out / "features",
    ).numbers()
    return found["zeroshot/top1" if of == "classes" else "findings/zeroshot/mean"]


def counted(seed: int, *, out: Path) -> dict[str, dict[str, int]]:
    """How many drawings each share is."""
    sources = {of: load(f"{out}/{seed}/labelled.csv?{_columns(of)}") for of in OFS}
    return {
        of: {f"{f:g}": len(part_of(source, fraction=f, seed=seed).samples) for f in FRACTIONS}
        for of, source in sources.items()
    }


def measured(length: Length, *, out: Path, rates: Sequence[float]) -> dict[str, Any]:
    """All runs, the long ones first; with ``rates`` only those that a rate is chosen by."""
    seeds = [TUNING_SEED] if rates else list(range(length.seeds))
    ways = ["texts", "random"] if rates else ["probe", "texts", "random"]
    tasks = [
        Task(of=of, way=way, fraction=fraction, seed=seed, rate=rate)
        for fraction in ((0.1,) if rates else sorted(FRACTIONS, reverse=True))
        for way in ways
        for of in OFS
        for seed in seeds
        for rate in (rates or (None,))
    ]
    workers = min(os.cpu_count() or 1, 4)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(_prepared, [(seed, out, length) for seed in seeds]))
        runs = {task: pool.submit(learned, task, out=out, length=length) for task in tasks}
        starts = {of: [pool.submit(before, of, seed, out=out) for seed in seeds] for of in OFS}
        found = {task: {way: 100 * value for way, value in run.result().items()} for task, run in runs.items()}
        first = {of: [100 * each.result() for each in several] for of, several in starts.items()}
    if rates:
        return {f"{t.way}, {t.of}, {t.rate:g}": values[t.way] for t, values in found.items()}
    several = {(t.of, way, t.fraction, t.seed): value for t, values in found.items() for way, value in values.items()}
    curves = {
        of: {way: {f"{f:g}": [several[of, way, f, seed] for seed in seeds] for f in FRACTIONS} for way in WAYS}
        for of in OFS
    }
    return {"curves": curves, "without labels": first, "labels": [counted(seed, out=out) for seed in seeds]}


def rows(curves: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> list[dict[str, Any]]:
    """The lines of the README's table: fine-tuned from class texts, beside from a random head."""
    found = []
    for of, by_way in curves.items():
        for fraction in FRACTIONS:
            ours, peer = (fmean(by_way[way][f"{fraction:g}"]) for way in ("texts", "random"))
            number = "accuracy, %" if of == "classes" else "AUC x 100"
            what = f"emoji, {of}, {fraction:.0%} of the labels: fine-tuned from class texts, {number}"
            found.append({"what": what, "ours": ours, "peer": peer, "peer name": "random head", "ratio": ours / peer})
    return found


def show(found: Mapping[str, Any], console: Console) -> None:
    """The curves as tables."""
    for of, title in OFS.items():
        table = Table(title=title, title_justify="left")
        for name in ("", *(f"{fraction:.0%} of the labels" for fraction in FRACTIONS)):
            table.add_column(name, justify="right")
        for way, label in WAYS.items():
            table.add_row(label, *(_spread(found["curves"][of][way][f"{fraction:g}"]) for fraction in FRACTIONS))
        console.print(table)
        console.print(f"without labels, by names: {_spread(found['without labels'][of])}\n")


def plot(found: Mapping[str, Any], path: Path) -> None:
    """The number against the share of the labels: a panel for classes and one for findings, deviations over seeds."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    for axes, (of, title) in zip(figure.subplots(1, 2), OFS.items(), strict=True):
        for way, label in WAYS.items():
            several = [found["curves"][of][way][f"{fraction:g}"] for fraction in FRACTIONS]
            mean, spread = [fmean(each) for each in several], [_deviation(each) for each in several]
            axes.errorbar(FRACTIONS, mean, yerr=spread, marker="o", capsize=3, label=label)
        axes.axhline(fmean(found["without labels"][of]), color="grey", linestyle=":", label="no labels, by names")
        axes.set(xscale="log", xlabel="share of the labels", title=title)
        axes.set_xticks(FRACTIONS, [f"{fraction:.0%}" for fraction in FRACTIONS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _columns(of: Of) -> str:
    """How a table is read, whose images lie elsewhere."""
    return "root=/&label=label&findings=" if of == "classes" else "root=/&label=&findings=*"


def _prepared(given: tuple[int, Path, Length]) -> None:
    seed, out, length = given
    prepare(seed, out=out, length=length)


def _quietly() -> None:
    """One thread a run, and no bars of several processes over each other."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f} ± {_deviation(values):.1f}"


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    """Run all ways, print the tables, write `results/label_efficiency.json` and the plot of the docs."""
    home = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see whether all runs")
    parser.add_argument("--rates", type=float, nargs="+", default=(), help="only try these rates, on the tuning seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=home / "results" / "label_efficiency.json")
    parser.add_argument("--plot", type=Path, default=home.parent / "docs" / "img" / "label_efficiency.png")
    asked = parser.parse_args()
    length = QUICK if asked.quick else Length(seeds=asked.seeds)
    start = time.monotonic()
    build(default_folder(), say=lambda *_: None)
    with tempfile.TemporaryDirectory() as place:
        found = measured(length, out=Path(place), rates=asked.rates)
    if asked.rates:
        Console().print(found)
        return
    show(found, Console())
    rates = {f"{way}, {of}": rate for (way, of), rate in RATES.items()}
    facts = {"length": asdict(length), "rates": rates, "seconds": time.monotonic() - start}
    asked.out.write_text(
        json.dumps({**facts, "rows": rows(found["curves"]), **found}, indent=2) + "\n", encoding="utf-8"
    )
    plot(found, asked.plot)


if __name__ == "__main__":
    main()
