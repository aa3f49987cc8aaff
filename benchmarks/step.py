"""Training steps a second, ours and open_clip's, side by side in one process from the same weights.

Three batches of ViT-B/32: captions of 16 tokens, captions of mixed lengths with a mean of 24 tokens, and images of 100
classes that show class texts. Both sides compute
the same loss (the pair diagonal, in float32) and their losses are compared at the first step; both take AdamW steps
without gradient clipping. Pixels and tokens are ready beforehand on both sides: uint8 and the batch's own length
for ours, normalised float32 and 77 tokens for open_clip's, as its transform and its tokenizer make them.
"""

import argparse
import gc
import json
import logging
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from unicl.data.collate import ClassTexts, Collator, Drawn
from unicl.data.text import Tokenizer, load_tokenizer
from unicl.model import ModelSettings, TwoTowers
from unicl.recipes import clip as clip_recipe
from unicl.space import Batch, Sample
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.towers.weights.open_clip import tower_state
from unicl.train.optim import OptimSettings, adamw, clip
from unicl.train.ranks import Ranks
from unicl.train.step import plain_step

THEIR_MODEL = "ViT-B-32-quickgelu"
OUR_MODEL = "vit_base_patch32_clip_quickgelu_224"
TEMPLATE = "a photo of a {}, a type of thing."
OPTIM = OptimSettings(lr=1e-5, clip=None)
COLORS = ("red", "blue", "green", "black", "white", "yellow", "brown", "pink", "gold", "silver")
THINGS = ("dog", "car", "house", "tree", "bird", "boat", "flower", "shirt", "train", "cup")
LINKS = ("and", "with", "near", "on", "under", "by", "in", "over", "at", "beside")

RATIOS = ("ratio", "wanted", "ratio of processor time")

Step = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of batch: its samples, the same texts row by row for open_clip, and the ratio that is to be reached."""

    name: str
    samples: tuple[Sample, ...]
    texts: tuple[str, ...]
    wanted: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Both models with the same weights."""

    ours: TwoTowers
    theirs: torch.nn.Module


def captions(size: int, *, tokenizer: Tokenizer, rng: np.random.Generator) -> Case:
    """Captions of 16 tokens, the two marks included."""
    words = [np.stack([rng.choice(each, 5) for each in (COLORS, THINGS, LINKS)], axis=1) for _ in range(size)]
    texts = tuple(" ".join(each.flatten()[:-1]) for each in words)
    assert set(tokenizer.lengths(texts).tolist()) == {16}
    samples = tuple(Sample(id=str(k), captions=(text,)) for k, text in enumerate(texts))
    return Case(name="captions of 16 tokens", samples=samples, texts=texts, wanted=1.5)


def mixed_captions(size: int, *, tokenizer: Tokenizer, rng: np.random.Generator) -> Case:
    """Captions whose lengths are spread as people write them: most are short, few are long; 24 tokens on average."""
    normal = statistics.NormalDist(mu=3.03, sigma=0.55)
    places = (np.arange(size) + 0.5) / size
    lengths = [min(max(round(math.exp(normal.inv_cdf(place))), 8), 77) for place in places]
    lengths[-1] = 77
    words = [[str(word) for word in rng.choice((*COLORS, *THINGS, *LINKS), length - 2)] for length in lengths]
    texts = tuple(" ".join(words[k]) for k in rng.permutation(size))
    assert sorted(tokenizer.lengths(texts).tolist()) == lengths
    assert size < 32 or abs(np.mean(lengths) - 24) < 1
    samples = tuple(Sample(id=str(k), captions=(text,)) for k, text in enumerate(texts))
    return Case(name="captions of 24 tokens on average", samples=samples, texts=texts, wanted=1.5)


def classes(size: int, *, rng: np.random.Generator) -> Case:
    """Images drawn from 100 classes, each with the text of its class."""
    names = [f"{color} {thing}" for color in COLORS for thing in THINGS]
    labels = [names[k] for k in rng.integers(len(names), size=size)]
    samples = tuple(Sample(id=str(k), labels=(label,), namespace="things") for k, label in enumerate(labels))
    texts = tuple(TEMPLATE.format(label) for label in labels)
    return Case(name="labels of 100 classes", samples=samples, texts=texts, wanted=1.7)


def build() -> Sides:
    """A random open_clip model, and ours with its weights."""
    torch.manual_seed(0)
    theirs = open_clip.create_model(THEIR_MODEL, pretrained_image=False, output_dict=True)
    text = TextSettings(name="clip", tokenizer="clip", layers=12, dim=512, heads=8)
    settings = ModelSettings(image=ImageSettings(name=OUR_MODEL), text=text, width=512, terms=clip_recipe().terms)
    ours = TwoTowers(settings, tokenizer=load_tokenizer("clip", context=77))
    state = theirs.state_dict()
    ours.image.load_state_dict(tower_state(state, ours.image, side="image", source=THEIR_MODEL))
    assert ours.text is not None
    ours.text.load_state_dict(tower_state(state, ours.text, side="text", source=THEIR_MODEL))
    return Sides(ours=ours.train(), theirs=theirs.train())


def our_batch(case: Case, images: Tensor, *, tokenizer: Tokenizer, mode: str) -> Batch:
    """The batch as our collator makes it: ``mode`` is "sample" for the recipe clip, "label" for unicl."""
    texts = ClassTexts(templates={"en": (TEMPLATE,), "zh": (TEMPLATE,)}, names={})
    drawn = [
        Drawn(sample=sample, source="bench", caption=next(iter(sample.captions), None), image=image)
        for sample, image in zip(case.samples, images, strict=True)
    ]
    return Collator(mode=mode, texts=texts, tokenizer=tokenizer)(drawn, rng_key=(0,))  # type: ignore[arg-type]


def our_step(model: TwoTowers, batch: Batch) -> Step:
    """A step as `unicl.train.loop` takes it."""
    optimiser = adamw(model, OPTIM)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        result = plain_step(model, batch, ranks=Ranks(), precision="fp32")
        norm = clip(model.parameters(), norm=OPTIM.clip)
        assert math.isfinite(float(norm))
        optimiser.step()
        model.objective.clamp()
        return float(result.loss)

    return step


def their_step(model: Any, images: Tensor, tokens: Tensor) -> Step:
    """A step as ``open_clip_train.train`` takes it in float32."""
    optimiser = their_optimiser(model)
    loss = open_clip.ClipLoss()

    def step() -> float:
        optimiser.zero_grad()
        total = sum(loss(**model(images, tokens), output_dict=True).values())
        total.backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return float(total.detach())

    return step


def their_optimiser(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW over what learns, with the parameter groups of ``open_clip_train``'s main file."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
    rest = [p for _, p in named if all(p is not other for other in plain)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": OPTIM.weight_decay}]
    return torch.optim.AdamW(groups, lr=OPTIM.lr, betas=(OPTIM.beta1, OPTIM.beta2), eps=OPTIM.eps)


@dataclass(slots=True, kw_only=True)
class Record:
    """What one side's steps gave; the first step is warm-up and has a loss only."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)

    def take(self, step: Step) -> None:
        """One step, with the time on the clock and the time of all threads on the processor."""
        wall, processor = time.perf_counter(), time.process_time()
        self.losses.append(step())
        if len(self.losses) > 1:
            self.seconds.append(time.perf_counter() - wall)
            self.processor_seconds.append(time.process_time() - processor)


def measure(sides: tuple[Step, Step], *, repeats: int) -> tuple[Record, Record]:
    """Both sides take turns on the same batch, so that a busy moment of the machine falls on both."""
    records = Record(), Record()
    for _ in range(repeats + 1):
        for record, step in zip(records, sides, strict=True):
            record.take(step)
    return records


def run(case: Case, *, repeats: int) -> dict[str, Any]:
    """Build both sides, train them by turns on one batch, and say what came out."""
    sides = build()
    tokenizer = sides.ours.tokenizer
    assert tokenizer is not None
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (len(case.samples), 3, 224, 224), dtype=torch.uint8, generator=generator)
    pixels = (images.float() / 255 - sides.ours.image.mean) / sides.ours.image.std
    tokens = open_clip.get_tokenizer(THEIR_MODEL)(list(case.texts))
    batch = our_batch(case, images, tokenizer=tokenizer, mode="sample")
    value = label_values(case, sides, batch, pixels=pixels, tokens=tokens)
    ours, theirs = measure((our_step(sides.ours, batch), their_step(sides.theirs, pixels, tokens)), repeats=repeats)
    speeds = [len(images) / statistics.median(each.seconds) for each in (ours, theirs)]
    pairs = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    work = [statistics.median(each.processor_seconds) for each in (ours, theirs)]
    return {
        "images": len(images),
        "texts encoded": [len(batch.tokens), len(tokens)],
        "mean tokens": [float(batch.token_mask.sum() / len(batch.tokens)), tokens.shape[1]],
        "tokens a text": [batch.tokens.shape[1], tokens.shape[1]],
        "first loss": [ours.losses[0], theirs.losses[0]],
        "last loss": [ours.losses[-1], theirs.losses[-1]],
        **value,
        "steps": [asdict(ours), asdict(theirs)],
        "samples per second": speeds,
        "ratio": speeds[0] / speeds[1],
        "ratio of processor time": work[1] / work[0],
        "ratio of each pair": pairs,
        "wanted": case.wanted,
    }


@torch.no_grad()
def label_values(case: Case, sides: Sides, batch: Batch, *, pixels: Tensor, tokens: Tensor) -> dict[str, Any]:
    """With labels, UniCL's loss besides: of our batch with label keys, and from open_clip's embeddings by formula."""
    labels = [label for sample in case.samples for label in sample.labels]
    if not labels:
        return {}
    assert sides.ours.tokenizer is not None
    by_label = our_batch(case, batch.images, tokenizer=sides.ours.tokenizer, mode="label")
    ours, _ = sides.ours.objective(sides.ours(by_label))
    out = sides.theirs(pixels, tokens)
    scores = (out["logit_scale"] * out["image_features"] @ out["text_features"].T).double()
    same = torch.tensor([[a == b for b in labels] for a in labels], dtype=torch.float64)
    target = same / same.sum(1, keepdim=True)
    both = [-(target * table.log_softmax(1)).sum(1).mean() for table in (scores, scores.T)]
    return {"unicl loss": [float(ours), float(sum(both) / 2)]}


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table of all cases."""
    table = Table("batch", "side", "texts", "tokens", "first loss", "samples/s", "ratio", "wanted", "processor time")
    for name, result in results.items():
        for side, who in enumerate(("ours", "open_clip")):
            table.add_row(
                f"{result['images']} images, {name}" if side == 0 else "",
                who,
                str(result["texts encoded"][side]),
                str(result["tokens a text"][side]),
                f"{result['first loss'][side]:.6f}",
                f"{result['samples per second'][side]:.2f}",
                *(
                    (f"{result[key]:.2f}" if side == 0 else "")
                    for key in ("ratio", "wanted", "ratio of processor time")
                ),
            )
    Console(width=140).print(table)


def rows(cases: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the README's table, see ``table.py``."""
    return [
        {
            "what": f"training ViT-B/32, {name}, samples/s",
            "ours": round(result["samples per second"][0], 2),
            "peer": round(result["samples per second"][1], 2),
            "peer name": "open_clip",
            "ratio": round(result["ratio"], 2),
            "wanted": result["wanted"],
        }
        for name, result in cases.items()
    ]


def main() -> None:
    """Run all cases, writing what is there after each to ``results/step.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captioned", type=int, default=64, help="images in the batch of captions")
    parser.add_argument("--labelled", type=int, default=64, help="images in the batch of labels")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that its weights are random, which is meant here
    rng = np.random.default_rng(0)
    tokenizer = load_tokenizer("clip", context=77)
    cases = (
        captions(asked.captioned, tokenizer=tokenizer, rng=rng),
        classes(asked.labelled, rng=rng),
        mixed_captions(asked.captioned, tokenizer=tokenizer, rng=rng),
    )
    content = {**setting(threads=asked.threads), "cases": {}}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for case in cases:
        content["cases"][case.name] = run(case, repeats=asked.repeats)
        content["rows"] = rows(content["cases"])
        content["peak memory GB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)
        asked.out.write_text(json.dumps(content, indent=2) + "\n")
        gc.collect()
    show(content["cases"])


def setting(*, threads: int) -> dict[str, Any]:
    """On what it was measured."""
    packages = ("unicl", "torch", "timm", "transformers", "open_clip_torch")
    return {
        "model": "ViT-B/32, float32",
        "threads": threads,
        "wait policy of threads": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load before": [round(average, 1) for average in os.getloadavg()],
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "order": "every list: ours, open_clip",
    }


if __name__ == "__main__":
    main()
