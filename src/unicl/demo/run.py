"""Trains the four systems on the emoji of one artist, tests them on another's, and shows them side by side."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

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
from unicl.demo.scores import Test, score
from unicl.demo.systems import IMAGE, TEXT, systems
from unicl.demo.table import Results, show
from unicl.model import TwoTowers
from unicl.recipes import Recipe
from unicl.run import build_model
from unicl.towers.text import build_tokenizer
from unicl.train.features import cached_features
from unicl.train.loop import fit
from unicl.train.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished run of a system: the model and the loss of each step."""

    model: TwoTowers
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What all runs share: the data, its tokenizer, and the features of the locked tower."""

    source: Source
    texts: ClassTexts
    tokenizer: Tokenizer
    features: Tensor


def demo(out: Path, *, seeds: int = 3, steps: int = 300) -> Results:
    """Run the demo in the folder ``out``: the table on the terminal, results.json and page.html; the same every time."""
    console = Console(stderr=True)
    emoji = _emoji(console)
    recipes = systems(steps=steps)
    parts, tests = _prepare(emoji, recipes["itl"], out)
    results, first = {}, {}
    with _bar(console) as bar:
        task = bar.add_task("training", total=len(recipes) * seeds)
        for name, recipe in recipes.items():
            for seed in range(seeds):
                trained = _train(recipe, parts, seed=seed, out=out / "runs" / f"{name.replace(' ', '-')}-{seed}")
                results[name, seed] = score(trained.model, tests)
                first.setdefault(name, trained)
                bar.update(task, advance=1, description=f"training {name}, seed {seed}")
    summary = Results.of(results)
    show(summary, Console())
    (out / "results.json").write_text(json.dumps(summary.plain(), indent=2) + "\n", encoding="utf-8")
    curves = {name: trained.losses for name, trained in first.items()}
    page = write_page(
        out / "page.html", summary, models={n: t.model for n, t in first.items()}, tests=tests, curves=curves
    )
    console.print(f"the page with curves, searches and predictions: {page}")
    return summary


def _emoji(console: Console) -> EmojiSet:
    with _bar(console) as bar:
        task = bar.add_task("drawing the emoji of two artists", total=None)
        return build(default_folder(), say=lambda done, total: bar.update(task, completed=done, total=total))


def _prepare(emoji: EmojiSet, recipe: Recipe, out: Path) -> tuple[_Parts, Mapping[str, Test]]:
    """Everything that is the same for all runs, once: tokenizer, features of all pictures, tests in two languages."""
    out.mkdir(parents=True, exist_ok=True)
    sources = {
        name: load(f"{path}?image=file&text=title,title_zh&label=category&namespace=emoji")
        for name, path in (("train", emoji.train), ("seen", emoji.seen), ("unseen", emoji.unseen))
    }
    texts = class_texts("auto", names={en: (en, zh) for en, zh in emoji.categories.items()})
    tokenizer = build_tokenizer(TEXT, texts=_all_texts(sources["train"], texts))
    model = build_model(replace(recipe, fit=replace(recipe.fit, seed=0)), [sources["train"]], tokenizer=tokenizer)
    features = {
        name: cached_features([source], model, out / f"features-{name}.safetensors", ranks=Ranks())
        for name, source in sources.items()
    }
    parts = _Parts(source=sources["train"], texts=texts, tokenizer=tokenizer, features=features["train"])
    seen = {
        name: Test.of(sources[name], features=features[name], categories=emoji.categories)
        for name in ("seen", "unseen")
    }
    return parts, seen


def _all_texts(source: Source, texts: ClassTexts) -> list[str]:
    labels = dict.fromkeys(label for sample in source.samples for label in sample.labels)
    names = [name for label in labels for name in texts.names[label]]
    filled = [fill(template, name) for name in names for template in texts.templates_for(name)]
    return [caption for sample in source.samples for caption in sample.captions] + filled


def _train(recipe: Recipe, parts: _Parts, *, seed: int, out: Path) -> Trained:
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
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    (out / "metrics.jsonl").unlink(missing_ok=True)
    fit(model, stream, recipe.fit, optim=recipe.optim, out=out, ranks=Ranks(), quiet=True)
    return Trained(model=model.eval(), losses=_losses(out / "metrics.jsonl"))


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
