"""Trains the four systems on the emoji of one artist, tests them on another's, and shows them side by side."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from unicl.data.collate import ClassTexts, class_texts
from unicl.data.prompts import fill
from unicl.data.quarantine import Quarantine
from unicl.data.sources import Source, load
from unicl.data.stream import Stream
from unicl.data.text import Tokenizer
from unicl.demo.emoji import EmojiSet, build, default_folder
from unicl.demo.page import write_page
from unicl.demo.scores import Trial, score
from unicl.demo.systems import IMAGE, TEXT, systems
from unicl.demo.table import Results, show
from unicl.model import load_model
from unicl.run import build_model
from unicl.towers.text import build_tokenizer
from unicl.train.features import Features, kept_features
from unicl.train.loop import fit
from unicl.train.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What all runs share: the data, its texts and tokenizer, the features of the locked tower, and the tests."""

    source: Source
    texts: ClassTexts
    tokenizer: Tokenizer
    features: Features
    tests: Mapping[str, Trial]


def demo(out: Path, *, seeds: int = 3, steps: int = 250) -> Results:
    """Run the demo in the folder ``out``: table, results.json and page.html; the same on every run of one machine."""
    console = Console(stderr=True)
    emoji = _emoji(console)
    with console.status("features of all pictures, by the locked image tower"):
        parts = prepare(emoji, out)
    names = tuple(systems(steps=steps))
    tasks = [(name, seed) for seed in range(seeds) for name in names]
    scores = dict(zip(tasks, _trained(tasks, steps=steps, out=out, console=console), strict=True))
    summary = Results.of({(name, seed): scores[name, seed] for name in names for seed in range(seeds)})
    show(summary, Console())
    (out / "results.json").write_text(json.dumps(summary.plain(), indent=2) + "\n", encoding="utf-8")
    runs = {name: _folder(out, name, 0) for name in names}
    models = {name: load_model(run) for name, run in runs.items()}
    curves = {name: _losses(run / "metrics.jsonl") for name, run in runs.items()}
    page = write_page(out / "page.html", summary, models=models, tests=parts.tests, curves=curves)
    console.print(f"the page with curves, searches and predictions: {page}", markup=False, soft_wrap=True)
    return summary


def train_one(name: str, seed: int, *, steps: int, out: Path) -> dict[str, float]:
    """Train one system with one seed on one thread, in a process of its own; returns its scores."""
    torch.set_num_threads(1)
    parts = _shared(out)
    recipe = systems(steps=steps)[name]
    recipe = replace(recipe, fit=replace(recipe.fit, seed=seed))
    model = build_model(recipe, [parts.source], tokenizer=parts.tokenizer)
    stream = Stream(
        [parts.source],
        recipe.data,
        texts=parts.texts,
        tokenizer=parts.tokenizer,
        size=IMAGE.size,
        seed=seed,
        quarantine=Quarantine(limit=0),
        features=parts.features,
    )
    run = _folder(out, name, seed)
    shutil.rmtree(run, ignore_errors=True)
    (run / "checkpoints").mkdir(parents=True)
    fit(model, stream, recipe.fit, optim=recipe.optim, out=run, ranks=Ranks(), quiet=True)
    return score(model.eval(), parts.tests)


def _trained(tasks: Sequence[tuple[str, int]], *, steps: int, out: Path, console: Console) -> list[dict[str, float]]:
    """The scores of all tasks: matrices this small gain nothing from a second thread, so two runs share two cores."""
    workers = min(os.cpu_count() or 1, len(tasks), 4)
    with _bar(console) as bar, ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        shown = bar.add_task("training four systems", total=len(tasks))
        futures = [pool.submit(train_one, name, seed, steps=steps, out=out) for name, seed in tasks]
        for done in as_completed(futures):
            done.result()
            bar.advance(shown)
    return [future.result() for future in futures]


@cache
def _shared(out: Path) -> Parts:
    return prepare(build(default_folder(), say=lambda *_: None), out)


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / "runs" / f"{name.replace(' ', '-')}-{seed}"


def _emoji(console: Console) -> EmojiSet:
    with _bar(console) as bar:
        task = bar.add_task("drawing the emoji of two artists", total=None)
        return build(default_folder(), say=lambda done, total: bar.update(task, completed=done, total=total))


def prepare(emoji: EmojiSet, out: Path) -> Parts:
    """Everything that is the same for all runs: tokenizer, features of all pictures, tests in two languages."""
    out.mkdir(parents=True, exist_ok=True)
    sources = {
        name: load(f"{path}?image=file&text=title,title_zh&label=category&namespace=emoji")
        for name, path in (("train", emoji.train), ("seen", emoji.seen), ("unseen", emoji.unseen))
    }
    texts = class_texts("auto", names={en: (en, zh) for en, zh in emoji.categories.items()})
    tokenizer = build_tokenizer(TEXT, texts=_all_texts(sources["train"], texts))
    model = build_model(systems(steps=1)["clip"], [sources["train"]], tokenizer=tokenizer)
    features = {
        name: kept_features(model, source.samples, out / "features", quiet=True) for name, source in sources.items()
    }
    tests = {
        name: Trial.of(sources[name], features=_rows(features[name]), categories=emoji.categories)
        for name in ("seen", "unseen")
    }
    return Parts(source=sources["train"], texts=texts, tokenizer=tokenizer, features=features["train"], tests=tests)


def _rows(features: Features) -> Tensor:
    """All rows of pictures that were drawn a moment ago, so that each can be read."""
    found = (features[number] for number in range(len(features.samples)))
    return torch.stack([row for row in found if row is not None])


def _all_texts(source: Source, texts: ClassTexts) -> list[str]:
    labels = dict.fromkeys(label for sample in source.samples for label in sample.labels)
    names = [name for label in labels for name in texts.names[label]]
    filled = [fill(template, name) for name in names for template in texts.templates_for(name)]
    return [caption for sample in source.samples for caption in sample.captions] + filled


def _losses(metrics: Path) -> tuple[float, ...]:
    return tuple(json.loads(line)["loss"] for line in metrics.read_text(encoding="utf-8").splitlines())


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
