"""Unpaired pictures and names that are matched by findings, beside pairs alone: how much do the unpaired ones add?

The demo's emoji: drawings of one artist with English names, tested on another artist's. Of each thing there is a table
of findings: its kind (Unicode's group and subgroup), its use (what people do with that kind), and the colours of the
training artist's drawing. Of 10, 30 or 100 % of the things, picture and name come as a pair; of the rest, the picture
and the name come apart, in no order, and only their findings are known. All ways see the same towers, steps and batch.
The image tower is ImageNet's EfficientNet-Lite0, locked.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from unicl.data.collate import class_texts
from unicl.data.quarantine import Quarantine
from unicl.data.sources import Source, load
from unicl.data.stream import Stream
from unicl.demo.emoji import EmojiSet, build, default_folder
from unicl.demo.scores import Trial, score
from unicl.demo.systems import IMAGE, TEXT
from unicl.demo.table import Results, show
from unicl.model import TwoTowers
from unicl.objective.terms import ContrastSettings, TermSettings
from unicl.recipes import Recipe, clip
from unicl.run import build_model
from unicl.space import Finding, Findings, Sample
from unicl.towers.text import build_tokenizer
from unicl.train.features import kept_features
from unicl.train.loop import fit
from unicl.train.ranks import Ranks

SHARES: Final = (0.1, 0.3, 1.0)
BATCH, RATE = 256, 2e-3
SHARP: Final = 10.0
AMONG: Final = 5
USES: Final[Mapping[str, str]] = {
    "eat": "fruit, vegetables, prepared food, Asian food, sweets and desserts, sea animals",
    "drink": "drinks, tableware",
    "travel": "road and rail vehicles, ships and boats, aircraft, hotel and travel items, maps and globes",
    "visit": "buildings, religious buildings, places to visit, landscapes",
    "play": "sports, games and toys, festivals and celebrations, medals and trophies",
    "make art": "arts and crafts, musical instruments, music equipment, film and lights",
    "wear": "clothing and accessories",
    "talk and write": "telephones, computer equipment, mail, writing tools, office supplies, books and paper",
    "pay": "money",
    "repair": "tools, locks and keys, scientific instruments",
    "heal": "medicine",
    "live with": "household items, flowers, trees and other plants",
}
COLOURS: Final[Mapping[str, tuple[int, int, int]]] = {
    "red": (220, 50, 50),
    "orange": (240, 150, 50),
    "yellow": (250, 220, 80),
    "green": (90, 170, 60),
    "blue": (60, 120, 220),
    "purple": (150, 80, 170),
    "pink": (250, 160, 180),
    "brown": (120, 75, 50),
    "grey": (155, 155, 155),
    "black": (30, 30, 30),
}
LEAST: Final = 0.15
"""The share of a drawing that a colour needs to be one of its findings."""

PAIRS: Final = ContrastSettings(name="instances", texts="captions")
FINDINGS: Final = ContrastSettings(name="findings", texts="findings")
WAYS: Final[Mapping[str, tuple[TermSettings, ...]]] = {
    "pairs alone": (PAIRS,),
    "and findings": (replace(PAIRS, weight=0.5), replace(FINDINGS, weight=0.5)),
    "and findings, sharp": (replace(PAIRS, weight=0.5), replace(FINDINGS, weight=0.5, sharpness=SHARP)),
    "findings alone, sharp": (replace(FINDINGS, sharpness=SHARP),),
}
"""What is learned: the third and fourth have MedCLIP's target ten times as sharp as the paper's."""


def recipe(way: str, *, steps: int, seed: int) -> Recipe:
    """The demo's towers with the terms of one way."""
    made = clip()
    return replace(
        made,
        image=IMAGE,
        text=TEXT,
        terms=WAYS[way],
        data=replace(made.data, keys="typed", batch=BATCH, augment=None, workers=1),
        optim=replace(made.optim, lr=RATE, weight_decay=0.1, clip=None),
        fit=replace(made.fit, steps=steps, seed=seed),
    )


def source(path: Path) -> Source:
    """The emoji with an English name each, and their category."""
    return load(f"{path}?image=file&text=title,title_zh&label=category&namespace=emoji")


def colours(image: Path) -> set[str]:
    """The colours of which a drawing has enough; white is the paper."""
    pixels = np.asarray(Image.open(image).convert("RGB").resize((48, 48))).reshape(-1, 3).astype(float)
    drawn = pixels[pixels.min(1) < 240]
    nearest = np.square(drawn[:, None] - np.array(list(COLOURS.values()))[None]).sum(2).argmin(1)
    shares = np.bincount(nearest, minlength=len(COLOURS)) / max(len(drawn), 1)
    return {name for name, share in zip(COLOURS, shares, strict=True) if share >= LEAST}


def findings_of(samples: Sequence[Sample]) -> list[Findings]:
    """The table: kind, use and colour of each thing, present or not mentioned."""
    uses = {category.strip(): use for use, several in USES.items() for category in several.split(",")}
    rows = []
    for sample in samples:
        assert isinstance(sample.image, Path)
        kind = sample.labels[0]
        rows.append({kind, *([uses[kind]] if kind in uses else []), *colours(sample.image)})
    names = sorted({name for row in rows for name in row})
    return [tuple((name, Finding.PRESENT if name in row else Finding.UNMENTIONED) for name in names) for row in rows]


def sources(train: Source, findings: Sequence[Findings], *, share: float, way: str, seed: int) -> list[Source]:
    """Pairs of a share of the things, and of the rest, pictures and names apart; each as often as the others.

    Labels stay out: what a picture shows is in its findings alone. Names are English.
    """
    order = np.random.default_rng([7, seed]).permutation(len(train.samples))
    plain = [
        replace(s, captions=s.captions[:1], labels=(), findings=f) for s, f in zip(train.samples, findings, strict=True)
    ]
    count = round(share * len(order))
    paired = [plain[k] for k in order[:count]]
    images = [replace(plain[k], captions=()) for k in order[count:]]
    texts = [replace(plain[k], image=None, id=f"name {plain[k].id}") for k in np.roll(order[count:], 1)]
    kinds = {"pairs": paired} if way == "pairs alone" else {"pairs": paired, "images": images, "texts": texts}
    most = max(len(samples) for samples in kinds.values())
    return [
        replace(train, name=name, samples=tuple(samples), weight=most / len(samples))
        for name, samples in kinds.items()
        if samples
    ]


@cache
def shared(out: Path) -> tuple[Source, tuple[Findings, ...], EmojiSet]:
    """The training set with its findings; the same in every process."""
    del out
    emoji = build(default_folder(), say=lambda *_: None)
    train = source(emoji.train)
    return train, tuple(findings_of(train.samples)), emoji


def run(way: str, share: float, seed: int, *, steps: int, out: Path) -> dict[str, float]:
    """Train one way with one seed on one thread; returns its scores."""
    torch.set_num_threads(1)
    train, findings, emoji = shared(out)
    made = recipe(way, steps=steps, seed=seed)
    texts = class_texts("auto", names={en: (en, zh) for en, zh in emoji.categories.items()})
    tokenizer = build_tokenizer(TEXT, texts=[text for s in train.samples for text in (*s.captions, *s.labels)])
    given = sources(train, findings, share=share, way=way, seed=seed)
    model = build_model(made, given, tokenizer=tokenizer)
    stream = Stream(
        given, made.data, texts=texts, tokenizer=tokenizer, size=IMAGE.size, seed=seed, quarantine=Quarantine(limit=0)
    )
    stream.features = kept_features(model, stream.samples, out / "features", quiet=True)
    folder = out / f"{way}-{share}-{seed}"
    (folder / "checkpoints").mkdir(parents=True)
    fit(model, stream, made.fit, optim=made.optim, out=folder, ranks=Ranks(), quiet=True)
    model.eval()
    tests = {}
    for name, path in (("seen", emoji.seen), ("unseen", emoji.unseen)):
        test = source(path)
        features = kept_features(model, test.samples, out / "features", quiet=True)
        rows = torch.stack([row for row in (features[k] for k in range(len(test.samples))) if row is not None])
        tests[name] = Trial.of(test, features=rows, categories=emoji.categories)
    return scores_of(model, tests)


def scores_of(model: TwoTowers, tests: Mapping[str, Trial]) -> dict[str, float]:
    """The demo's retrieval in English, and how many of the five nearest names are of the picture's kind.

    The names of the categories were never read in training, so that zero-shot would say little.
    """
    found = {name: value for name, value in score(model, tests).items() if name.endswith("en") and "zero" not in name}
    for which, test in tests.items():
        images, names = model.embed_whole(test.features), model.embed_text(test.titles["en"])
        nearest = (images @ names.T).topk(AMONG, dim=1).indices
        found[f"of the right kind among {AMONG}, {which}"] = float(
            (test.truth[nearest] == test.truth[:, None]).float().mean()
        )
    return found


def measured(shares: Sequence[float], *, seeds: int, steps: int, out: Path) -> dict[float, Results]:
    """All runs, as many at a time as there are cores, up to four; the features of all pictures first."""
    run("pairs alone", 1.0, 99, steps=1, out=out)
    tasks = [(way, share, seed) for share in shares for way in WAYS for seed in range(seeds)]
    workers = min(os.cpu_count() or 1, len(tasks), 4)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {task: pool.submit(run, *task, steps=steps, out=out) for task in tasks}
        scores = {task: future.result() for task, future in futures.items()}
    return {
        share: Results.of({(way, seed): found for (way, own, seed), found in scores.items() if own == share})
        for share in shares
    }


def rows(shares: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the README's table: names of the right kind, with unpaired things and with pairs alone."""
    column, found = f"of the right kind among {AMONG}, seen", []
    for share, each in shares.items():
        ours, alone = (each["systems"][way][column][0] for way in ("and findings, sharp", "pairs alone"))
        what = f"emoji, {float(share):.0%} of the pairs and all findings: names of the right kind among {AMONG}"
        found.append({"what": what, "ours": ours, "peer": alone, "peer name": "pairs alone", "ratio": ours / alone})
    return found


def main() -> None:
    """Run all shares, ways and seeds, print the tables and write `results/unpaired.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "unpaired.json")
    asked = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        results = measured(SHARES, seeds=asked.seeds, steps=asked.steps, out=Path(place))
    for share, found in results.items():
        Console().print(f"\n{share:.0%} of the pairs")
        show(found, Console())
    facts = {"steps": asked.steps, "batch": BATCH, "rate": RATE, "sharp": SHARP, "seconds": time.monotonic() - start}
    shares = {f"{share:g}": found.plain() for share, found in results.items()}
    content = {**facts, "rows": rows(shares), "shares": shares}
    asked.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
