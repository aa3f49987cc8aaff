"""Locked, then both; both at once; or locked for good: three ways to teach one pair of towers two languages.

The demo's emoji: drawings of one artist, each with an English and a Chinese caption, tested on another artist's. The
image tower is ImageNet's EfficientNet-Lite0, the text tower starts from random weights, and only the stages differ: all
have as many steps of as many pairs, and each stage its own warm-up and cosine. Every picture is computed anew at each
step.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import torch
from rich.console import Console

from unicl.data.image import Augment
from unicl.data.sources import Source, load
from unicl.demo.emoji import EmojiSet, build, default_folder
from unicl.demo.scores import Trial, score
from unicl.demo.systems import IMAGE, TEXT
from unicl.demo.table import Results, show
from unicl.model import TwoTowers, load_model
from unicl.recipes import Recipe, chinese_clip
from unicl.run import Job, train
from unicl.train.learning import Learning
from unicl.train.stages import Stage

HEAD: Final = Learning(part="head")
BOTH: Final = Learning()
SIZE, BATCH, RATE, SLOWER = 96, 64, 2e-3, 0.2


def stages(*, steps: int) -> Mapping[str, tuple[Stage, ...]]:
    """The ways: one stage at the second stage's rate (a fifth, as Chinese-CLIP has it), and at the first one's."""
    first, rest = steps // 2, steps - steps // 2
    return {
        "locked": (Stage(name="texts", image=HEAD, steps=steps),),
        "one stage": (Stage(name="both", image=BOTH, steps=steps, rate=SLOWER),),
        "one stage, full rate": (Stage(name="both", image=BOTH, steps=steps),),
        "two stages": (
            Stage(name="texts", image=HEAD, steps=first),
            Stage(name="both", image=BOTH, steps=rest, rate=SLOWER),
        ),
    }


def recipe(way: str, *, steps: int, seed: int) -> Recipe:
    """Chinese-CLIP's recipe with the demo's towers and one of the ways."""
    made = chinese_clip()
    return replace(
        made,
        image=replace(IMAGE, size=SIZE, locked=False),
        text=replace(TEXT, tokenizer="train"),
        width=256,
        data=replace(made.data, batch=BATCH, augment=Augment(crop=(0.6, 1.0)), workers=1),
        optim=replace(made.optim, lr=RATE, weight_decay=0.1, warmup=0.1),
        fit=replace(made.fit, seed=seed),
        stages=stages(steps=steps)[way],
    )


def source(path: Path) -> str:
    """The emoji with a caption in each language."""
    return f"{path}?image=file&text=title,title_zh&label=category&namespace=emoji"


def trial(name: Source, model: TwoTowers, emoji: EmojiSet) -> Trial:
    """A test as this model's own image tower sees it."""
    seen = model.encode_images([sample.image for sample in name.samples if sample.image is not None], parts=False)
    return Trial.of(name, features=seen.features, categories=emoji.categories)


def run(way: str, seed: int, *, steps: int, out: Path) -> dict[str, float]:
    """Train one way with one seed on one thread; returns its scores."""
    torch.set_num_threads(1)
    emoji = build(default_folder(), say=lambda *_: None)
    folder = out / f"{way.replace(' ', '-').replace(',', '')}-{seed}"
    train(Job(recipe=recipe(way, steps=steps, seed=seed), data=(source(emoji.train),)), folder, device="cpu")
    model = load_model(folder)
    tests = {"seen": load(source(emoji.seen)), "unseen": load(source(emoji.unseen))}
    return score(model, {name: trial(test, model, emoji) for name, test in tests.items()})


def measured(tasks: Sequence[tuple[str, int]], *, steps: int, out: Path) -> dict[tuple[str, int], dict[str, float]]:
    """All runs, as many at a time as there are cores, up to four."""
    workers = min(os.cpu_count() or 1, len(tasks), 4)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, way, seed, steps=steps, out=out) for way, seed in tasks]
        return {task: future.result() for task, future in zip(tasks, futures, strict=True)}


def main() -> None:
    """Run all ways and seeds, print the table and write `results/staged.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "staged.json")
    asked = parser.parse_args()
    start = time.monotonic()
    tasks = [(way, seed) for way in stages(steps=asked.steps) for seed in range(asked.seeds)]
    with tempfile.TemporaryDirectory() as place:
        results = Results.of(measured(tasks, steps=asked.steps, out=Path(place)))
    show(results, Console())
    found = {"steps": asked.steps, "batch": BATCH, "size": SIZE, "rate": RATE, "seconds": time.monotonic() - start}
    asked.out.write_text(json.dumps(found | results.plain(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
