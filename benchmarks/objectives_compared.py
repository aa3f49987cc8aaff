"""CLIP's figure 2 in the small: zero-shot accuracy against pictures seen, by what is learned from the captions.

Four objectives on one image tower and the same pictures, captions and batches: a transformer that writes the caption, a
linear layer that predicts its bag of words, a bag of words in contrast, and CLIP. Pictures are the demo's emoji by one
artist; a caption names the thing, mostly with its category, in one of fifteen forms that is drawn each time. Drawings
by another artist are sorted twice: by the names of 200 things, each of which one training picture shows, and by the
names of 49 categories, which many show. The image tower is ImageNet's EfficientNet-Lite0, locked: what is compared is
how fast a new head learns, on few pictures that are seen often, where CLIP trained towers from scratch on pictures seen
once. Each objective has the best of some learning rates, found on one half of the drawings; numbers are those of the
other.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from unicl.compare import class_scores
from unicl.data.image import decode, fit
from unicl.data.prompts import templates
from unicl.data.sources import load
from unicl.data.text import Tokenizer
from unicl.demo.emoji import build, default_folder
from unicl.model import TwoTowers
from unicl.objective.terms import CaptionSettings
from unicl.recipes import Recipe, bag_contrast, bag_prediction, caption_lm, clip
from unicl.run import build_model
from unicl.space import NOTHING, Captions, Columns, Embedding, Keys, Sample, all_rows, joined
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.parts import ImageParts, Look
from unicl.towers.text import TextSettings, build_tokenizer
from unicl.train.optim import OptimSettings, adamw, learning_rate, take_step

PLACES: Final = ImageParts(head="none", unit=False)
IMAGE: Final = ImageSettings(
    name="tf_efficientnet_lite0", size=160, weights="package:efficientnet_lite0", locked=True, parts=PLACES
)
TEXT: Final = TextSettings(layers=2, dim=128, heads=2, context=32, vocab=4096)
"""The transformer that reads captions, and the one that writes them; a bag's words are as wide as the embedding."""
WIDTH: Final = 256
SYSTEMS: Final[Mapping[str, tuple[str, Recipe]]] = {
    "caption_lm": ("caption language model", caption_lm()),
    "bag_prediction": ("bag-of-words prediction", bag_prediction()),
    "bag_contrast": ("bag-of-words contrast", bag_contrast()),
    "clip": ("CLIP", clip()),
}
PROMPTS: Final[Mapping[str, str]] = {name: "{}" if name == "bag_prediction" else "a picture of {}." for name in SYSTEMS}
"""What stands for a category: of a bag that is predicted, every other word would count as much as the name."""
FORMS: Final = ("{title}", "{title}, {category}", "{category}: {title}")
TESTS: Final[Mapping[str, str]] = {"things": "200 things", "categories": "49 categories"}
THINGS: Final = 200
TUNING_SEED: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How many steps are learned, after which of them is asked, and which rates are tried."""

    batch: int = 128
    asked: tuple[int, ...] = (12, 25, 50, 100, 200, 400)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    seeds: int = 3


QUICK: Final = Length(batch=32, asked=(4, 12), rates=(3e-3,), seeds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """Drawings as the locked tower sees them, to be sorted by ``names``, and the number of each one's own."""

    look: Look
    names: tuple[str, ...]
    truth: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is trained on, with the captions of each picture, and what is asked: half to find rates, half to report."""

    look: Look
    captions: tuple[tuple[str, ...], ...]
    tests: Mapping[tuple[str, str], Test]
    tokenizer: Tokenizer


def recipe(system: str) -> Recipe:
    """A recipe of the library on this benchmark's towers."""
    made = SYSTEMS[system][1]
    [term] = made.terms
    if isinstance(term, CaptionSettings):
        term = replace(term, width=TEXT.dim, layers=TEXT.layers, heads=TEXT.heads, dropout=0.0)
        return replace(made, image=replace(IMAGE, head="none"), words=TEXT, terms=(term,))
    image = replace(IMAGE, parts=None)
    if made.text is None:
        return replace(made, image=replace(image, head="none"), words=TEXT)
    width = WIDTH if made.text.name == "bag" else TEXT.dim
    return replace(made, image=image, text=replace(TEXT, name=made.text.name, dim=width), width=WIDTH)


def captions_of(title: str, category: str) -> tuple[str, ...]:
    """What may be written of a thing: its name in five sentences, with its category before, behind or not at all."""
    subjects = [form.format(title=title, category=category) for form in FORMS]
    return tuple(template.replace("{}", subject) for template in templates("en-short") for subject in subjects)


@cache
def data() -> Data:
    """All drawings, each seen once."""
    torch.manual_seed(0)
    emoji = build(default_folder(), say=lambda *_: None)
    sources = {
        name: load(f"{path}?image=file&text=title&label=category")
        for name, path in (("train", emoji.train), ("seen", emoji.seen), ("unseen", emoji.unseen))
    }
    captions = tuple(captions_of(s.captions[0], s.labels[0]) for s in sources["train"].samples)
    tokenizer = build_tokenizer(TEXT, texts=[caption for several in captions for caption in several])
    tower = build_model(recipe("caption_lm"), [], tokenizer=tokenizer).image.eval()
    return Data(
        look=looked(sources["train"].samples, tower=tower),
        captions=captions,
        tests=tests_of(sources["seen"].samples, sources["unseen"].samples, tower=tower),
        tokenizer=tokenizer,
    )


def tests_of(seen: Sequence[Sample], unseen: Sequence[Sample], *, tower: ImageTower) -> dict[tuple[str, str], Test]:
    """By test and half: things by their names, and as many seen and unseen things by their categories."""
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(1)).tolist()
    distinct = list({seen[k].captions[0]: seen[k] for k in order}.values())
    mixed = [*(seen[k] for k in order[: len(unseen)]), *unseen]
    categories = sorted({s.labels[0] for s in seen})
    found: dict[tuple[str, str], Test] = {}
    for number, half in enumerate(("tuning", "reported")):
        things = distinct[number * THINGS : (number + 1) * THINGS]
        some = mixed[number::2]
        for test, samples, names, own in (
            ("things", things, [s.captions[0] for s in things], [s.captions[0] for s in things]),
            ("categories", some, categories, [s.labels[0] for s in some]),
        ):
            truth = torch.tensor([names.index(name) for name in own])
            found[test, half] = Test(look=looked(samples, tower=tower), names=tuple(names), truth=truth)
    return found


def looked(samples: Sequence[Sample], *, tower: ImageTower) -> Look:
    """What the locked tower says of pictures, and of their places."""
    pixels = [fit(decode(s.image), size=IMAGE.size) for s in samples if s.image is not None]
    with torch.no_grad():
        looks = [tower.look(torch.stack(pixels[k : k + 64])) for k in range(0, len(pixels), 64)]
    parts = joined([each.parts for each in looks if each.parts is not None])
    return Look(features=torch.cat([each.features for each in looks]), parts=parts)


def some_of(look: Look, rows: Tensor, *, places: bool) -> Look:
    """What the tower says of some pictures, with or without their places."""
    parts = look.parts if places else None
    return Look(features=look.features[rows], parts=None if parts is None else parts.select(rows))


def learned(system: str, rate: float, seed: int, *, half: str, length: Length) -> dict[str, list[float]]:
    """Train one system on one thread: its accuracy on half of each test after each number of steps that is asked.

    Pictures and captions come in the same order to all systems of a seed; the rate stays after a short warm-up.
    """
    torch.set_num_threads(1)
    known, made = data(), recipe(system)
    model = build_model(replace(made, fit=replace(made.fit, seed=seed)), [], tokenizer=known.tokenizer).train()
    settings = OptimSettings(lr=rate, weight_decay=0.1, warmup=10, final=1.0, clip=1.0)
    optimiser, generator = adamw(model, settings), torch.Generator().manual_seed(seed)
    found: dict[str, list[float]] = {test: [] for test in TESTS}
    for step in range(max(length.asked)):
        rows = torch.randperm(len(known.captions), generator=generator)[: length.batch]
        forms = torch.randint(len(known.captions[0]), (len(rows),), generator=generator)
        said = [known.captions[row][form] for row, form in zip(rows.tolist(), forms.tolist(), strict=True)]
        optimiser.zero_grad(set_to_none=True)
        loss, _ = model.objective(columns(model, known.look, rows, said))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip or 1.0)
        take_step(optimiser, rate=learning_rate(step, steps=max(length.asked), settings=settings), seed=step)
        model.objective.clamp()
        if step + 1 in length.asked:
            for test, curve in found.items():
                curve.append(accuracy(model, known.tests[test, half], system=system))
    return found


def columns(model: TwoTowers, shown: Look, rows: Tensor, said: Sequence[str]) -> Columns:
    """Each picture with its own caption, to be read or to be predicted."""
    assert model.tokenizer is not None
    tokens, mask = model.tokenizer(said)
    keys, own = Keys.single(rows + 1), torch.arange(len(rows))
    captions = Captions(images=own, texts=own, tokens=tokens, mask=mask, wanted=torch.full_like(tokens, NOTHING))
    return Columns(
        images=model.image(some_of(shown, rows, places=model.image.parts is not None)),
        image_keys=keys,
        texts=None if model.text is None else model.text(tokens, mask),
        text_keys=keys,
        text_counts=torch.ones(len(rows)),
        captions=captions if model.text is None else None,
    )


@torch.no_grad()
def accuracy(model: TwoTowers, test: Test, *, system: str) -> float:
    """The share of drawings whose own name scores best, as `unicl evaluate --task zeroshot` has it."""
    model.eval()
    places = model.image.parts is not None
    some = torch.split(torch.arange(len(test.truth)), 128)
    seen: list[Embedding] = [model.image(some_of(test.look, rows, places=places)) for rows in some]
    images = all_rows(seen, width=model.settings.width, features=model.image.feature_width, parts=places)
    scores_NC = class_scores(model, images, test.names, templates=(PROMPTS[system],))
    model.train()
    return float((scores_NC.argmax(1) == test.truth).double().mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """By system: the rate that was chosen, how each rate did, and the curve of each seed by test."""

    rates: Mapping[str, float]
    tried: Mapping[str, Mapping[float, float]]
    curves: Mapping[str, Mapping[str, list[list[float]]]]


def measured(length: Length) -> Outcome:
    """First a rate for each system, by a seed of its own and one half of the drawings; then all seeds."""
    workers = min(os.cpu_count() or 1, 4)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        tries = {
            (system, rate): pool.submit(learned, system, rate, TUNING_SEED, half="tuning", length=length)
            for system in SYSTEMS
            for rate in length.rates
        }
        # The best point of a curve counts: a rate that learns at once and then forgets is not punished for it.
        tried = {s: {rate: _best(tries[s, rate].result()) for rate in length.rates} for s in SYSTEMS}
        rates = {system: max(of_rates, key=lambda rate: of_rates[rate]) for system, of_rates in tried.items()}
        runs = {
            system: [
                pool.submit(learned, system, rates[system], seed, half="reported", length=length)
                for seed in range(length.seeds)
            ]
            for system in SYSTEMS
        }
        found = {system: [each.result() for each in several] for system, several in runs.items()}
    curves = {s: {test: [run[test] for run in several] for test in TESTS} for s, several in found.items()}
    return Outcome(rates=rates, tried=tried, curves=curves)


def _best(run: Mapping[str, list[float]]) -> float:
    """The mean over tests of the best point of each curve."""
    return fmean(max(run[test]) for test in TESTS)


def pictures_to_reach(curve: Sequence[float], level: float, *, seen: Sequence[int]) -> float | None:
    """After how many pictures a curve first reaches a level, on straight lines from nothing at all; None if never."""
    points = [(0.0, 0.0), *zip(map(float, seen), curve, strict=True)]
    for (before, low), (after, high) in pairwise(points):
        if high >= level:
            return after if high == low else before + (after - before) * (level - low) / (high - low)
    return None


def report(outcome: Outcome, length: Length, *, seconds: float) -> dict[str, Any]:
    """All numbers, and the rows of the README's table."""
    seen = [step * length.batch for step in length.asked]
    tests = {test: _test({s: outcome.curves[s][test] for s in SYSTEMS}, seen=seen) for test in TESTS}
    tuning = {s: {f"{rate:g}": value for rate, value in tried.items()} for s, tried in outcome.tried.items()}
    return {
        "length": asdict(length),
        "pictures seen": seen,
        "rates": outcome.rates,
        "tuning": tuning,
        "tests": tests,
        "seconds": seconds,
        "rows": [_row(test, system, tests[test]) for test in TESTS for system in SYSTEMS if system != "clip"],
    }


def _test(curves: Mapping[str, list[list[float]]], *, seen: Sequence[int]) -> dict[str, Any]:
    """The numbers of one test: curves, the order of systems by their best point, and how soon each gets there."""
    mean = {s: [fmean(at) for at in zip(*several, strict=True)] for s, several in curves.items()}
    level = max(mean["caption_lm"])
    return {
        "mean": mean,
        "deviation": {s: [_spread(at) for at in zip(*several, strict=True)] for s, several in curves.items()},
        "seeds": curves,
        "best first": sorted(SYSTEMS, key=lambda s: max(mean[s]), reverse=True),
        "pictures until the best of the caption language model": {
            s: pictures_to_reach(mean[s], level, seen=seen) for s in SYSTEMS
        },
    }


def _row(test: str, system: str, found: Mapping[str, Any]) -> dict[str, Any]:
    ours, peer = (100 * max(found["mean"][s]) for s in ("clip", system))
    return {
        "what": f"CLIP's figure 2 in the small: {test} by name, zero-shot top-1 in %, best point",
        "ours": ours,
        "peer": peer,
        "peer name": SYSTEMS[system][0],
        "ratio": ours / max(peer, 1e-9),
    }


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Accuracy against pictures seen: a panel a test, a line a system with its deviation over seeds."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    seen = found["pictures seen"]
    for axes, (test, title) in zip(figure.subplots(1, 2), TESTS.items(), strict=True):
        for system, (label, _) in SYSTEMS.items():
            mean, spread = ([100 * v for v in found["tests"][test][of][system]] for of in ("mean", "deviation"))
            [line] = axes.plot(seen, mean, marker="o", label=label)
            low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(seen, low, high, alpha=0.15, color=line.get_color())
        axes.set(xscale="log", xlabel="pictures seen", ylabel="zero-shot top-1, %", ylim=(0, None), title=title)
        axes.set_xticks(seen, [f"{number:,}" for number in seen])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(SYSTEMS), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def show(found: Mapping[str, Any], console: Console) -> None:
    """The curves as tables."""
    for test, title in TESTS.items():
        table = Table(title=f"{title}: zero-shot top-1 in %, by pictures seen", title_justify="left")
        for name in ("", "rate", *(f"{number:,}" for number in found["pictures seen"])):
            table.add_column(name, justify="right")
        for system, (label, _) in SYSTEMS.items():
            own = found["tests"][test]
            points = zip(own["mean"][system], own["deviation"][system], strict=True)
            table.add_row(label, f"{found['rates'][system]:g}", *(f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in points))
        console.print(table)
        console.print(f"best first: {', '.join(SYSTEMS[s][0] for s in found['tests'][test]['best first'])}\n")


def main() -> None:
    """Run all systems, print the table, write `results/objectives_compared.json` and the plot of the docs."""
    home = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see whether all runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=home / "results" / "objectives_compared.json")
    parser.add_argument("--plot", type=Path, default=home.parent / "docs" / "img" / "objectives_compared.png")
    asked = parser.parse_args()
    length = QUICK if asked.quick else Length(seeds=asked.seeds)
    start = time.monotonic()
    data()
    outcome = measured(length)
    found = report(outcome, length, seconds=time.monotonic() - start)
    show(found, Console())
    asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    plot(found, asked.plot)


if __name__ == "__main__":
    main()
