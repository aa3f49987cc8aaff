"""Training a text tower against a locked ViT-B/32: ours on kept features, open_clip's as ``--lock-image`` does it.

Both sides start from the same weights, see the same pairs in the same order and take the same steps, by turns in one
process; their losses are compared at every step. What differs is the work: open_clip decodes and embeds the pictures
of every batch, and reads texts of 77 tokens; we embed each picture once, before the first step, and read what there is.
"""

import argparse
import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from step import OPTIM, THEIR_MODEL, build, setting, their_optimiser
from torch import Tensor
from torch.nn.functional import normalize

from unicl.data.collate import class_texts
from unicl.data.quarantine import Quarantine
from unicl.data.sources import Source, load
from unicl.data.stream import Stream, StreamSettings
from unicl.model import TwoTowers
from unicl.train.features import kept_features
from unicl.train.optim import adamw
from unicl.train.ranks import Ranks
from unicl.train.step import plain_step

COLOURS = {
    "red": (214, 40, 40),
    "green": (50, 160, 60),
    "blue": (40, 70, 200),
    "yellow": (240, 210, 50),
    "white": (240, 240, 240),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
SIZES = {"small": 40, "large": 70}
SIDE = 256
WANTED = 5.0


def picture(rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A shape on a page, and a caption of 16 tokens that says all that was drawn."""
    front, back = rng.choice(list(COLOURS), 2, replace=False)
    shape, place, size = (str(rng.choice(list(each))) for each in (SHAPES, PLACES, SIZES))
    middle = [SIDE * (0.3 + 0.4 * side) + rng.normal(0, 8) for side in PLACES[place]]
    reach = SIZES[size] * rng.uniform(0.9, 1.1)
    left, top, right, bottom = middle[0] - reach, middle[1] - reach, middle[0] + reach, middle[1] + reach
    image = Image.new("RGB", (SIDE, SIDE), COLOURS[back])
    draw = ImageDraw.Draw(image)
    match shape:
        case "circle":
            draw.ellipse((left, top, right, bottom), fill=COLOURS[front])
        case "square":
            draw.rectangle((left, top, right, bottom), fill=COLOURS[front])
        case "triangle":
            draw.polygon([(left, bottom), (right, bottom), (middle[0], top)], fill=COLOURS[front])
        case "cross":
            draw.line((left, top, right, bottom), fill=COLOURS[front], width=24)
            draw.line((left, bottom, right, top), fill=COLOURS[front], width=24)
    noisy = np.asarray(image) + rng.normal(0, 12, (SIDE, SIDE, 1))
    caption = f"a photo of a {size} {front} {shape} at the {place} of a {back} page"
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), caption


def write(folder: Path, *, count: int, seed: int) -> Source:
    """JPEGs with captions in a table; of the validation set, no two captions are alike."""
    rng, rows, known = np.random.default_rng(seed), ["file,caption"], set[str]()
    folder.mkdir()
    while len(rows) <= count:
        image, caption = picture(rng)
        if caption in known and seed:
            continue
        known.add(caption)
        image.save(folder / f"{len(rows):05d}.jpg", quality=90)
        rows.append(f"{len(rows):05d}.jpg,{caption}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return load(f"{folder / 'table.csv'}?text=caption")


@dataclass(slots=True, kw_only=True)
class Side:
    """One side's training: a step, its text vectors, its pictures of the validation set; and what came out."""

    step: Callable[[Any], float]
    read: Callable[[int], Any]
    texts: Callable[[Sequence[str]], Tensor]
    images: Tensor
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    reading: list[float] = field(default_factory=list)
    recalls: dict[int, float] = field(default_factory=dict)

    def take(self, number: int) -> None:
        """One step, with what reading takes of its time."""
        began = time.perf_counter()
        batch = self.read(number)
        self.reading.append(time.perf_counter() - began)
        self.losses.append(self.step(batch))
        self.seconds.append(time.perf_counter() - began)

    @torch.no_grad()
    def judge(self, captions: Sequence[str]) -> float:
        """Mean recall@5 of both directions on the validation set."""
        scores = self.images @ self.texts(captions).T
        found = [(table.topk(5).indices == torch.arange(len(table))[:, None]).any(1) for table in (scores, scores.T)]
        recall = float(torch.cat(found).float().mean())
        self.recalls[len(self.losses)] = recall
        return recall

    def seconds_to(self, recall: float) -> float | None:
        """The time of as many steps as the first evaluation that reached a recall came after.

        Each counts with the median: all are the same work, and one that the machine was busy in would count alone.
        """
        reached = next((step for step, value in self.recalls.items() if value >= recall), None)
        return None if reached is None else reached * statistics.median(self.seconds[1:])


def our_side(model: TwoTowers, stream: Stream, *, lr: float, images: Tensor) -> Side:
    """Steps as `unicl.train.loop` takes them, on features."""
    optimiser = adamw(model, OPTIM)

    def step(batch: Any) -> float:
        optimiser.zero_grad(set_to_none=True)
        result = plain_step(model, batch, ranks=Ranks(), precision="fp32")
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
        model.objective.clamp()
        return float(result.loss)

    return Side(step=step, read=stream.batch, texts=lambda texts: model.embed_text(texts), images=images)


def their_side(model: Any, stream: Stream, *, lr: float, images: Tensor, transform: Any) -> Side:
    """Steps as ``open_clip_train.train`` takes them in float32 with ``--lock-image``."""
    optimiser = their_optimiser(model)
    loss, tokenize = open_clip.ClipLoss(), open_clip.get_tokenizer(THEIR_MODEL)

    def read(number: int) -> tuple[Tensor, Tensor]:
        samples = [stream.samples[stream.mixture.draw(position)] for position in stream.positions(number)]
        pixels = [transform(Image.open(sample.image).convert("RGB")) for sample in samples]  # type: ignore[arg-type]
        return torch.stack(pixels), tokenize([sample.captions[0] for sample in samples])

    def step(batch: Any) -> float:
        optimiser.zero_grad()
        total = sum(loss(**model(*batch), output_dict=True).values())
        total.backward()
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return float(total.detach())

    def texts(captions: Sequence[str]) -> Tensor:
        return normalize(model.encode_text(tokenize(list(captions))), dim=-1)

    return Side(step=step, read=read, texts=texts, images=images)


@torch.no_grad()
def centre(ours: TwoTowers, theirs: Any, pixels: Tensor) -> None:
    """Random weights say nearly the same of all pictures; a bias in front of the projection takes their mean away."""
    mean = ours.image.features(pixels).mean(0)
    ours.image.backbone.norm.bias -= mean
    theirs.visual.ln_post.bias -= mean


def run(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Both sides from the same weights until both have reached the recall."""
    train, val = write(folder / "train", count=asked.pictures, seed=0), write(folder / "val", count=96, seed=1)
    sides = build()
    ours, theirs = sides.ours, sides.theirs
    transform = open_clip.image_transform(224, is_train=False)
    seen = torch.stack([transform(Image.open(sample.image).convert("RGB")) for sample in val.samples])  # type: ignore[arg-type]
    raw = (seen * ours.image.std + ours.image.mean) * 255
    centre(ours, theirs, raw)
    theirs.lock_image_tower()
    ours.image.lock(True)
    ours.image.requires_grad_(False)  # their projection is locked as well
    began = time.perf_counter()
    features = kept_features(ours, train.samples, folder / "kept", quiet=True)
    making = time.perf_counter() - began
    stream = Stream(
        [train],
        StreamSettings(batch=asked.batch, keys="sample", augment=None),
        texts=class_texts("en"),
        tokenizer=ours.tokenizer,
        size=224,
        seed=0,
        quarantine=Quarantine(limit=0),
        features=features,
    )
    with torch.no_grad():
        images = ours.embed_image([sample.image for sample in val.samples])  # type: ignore[misc]
        other = normalize(theirs.encode_image(seen), dim=-1)
    both = {
        "ours": our_side(ours, stream, lr=asked.lr, images=images),
        "open_clip": their_side(theirs, stream, lr=asked.lr, images=other, transform=transform),
    }
    captions = [sample.captions[0] for sample in val.samples]
    for number in range(asked.steps):
        for side in both.values():
            side.take(number)
        if (number + 1) % 5 == 0:
            recalls = [side.judge(captions) for side in both.values()]
            losses = [side.losses[-1] for side in both.values()]
            print(f"step {number + 1}: losses {losses}, recalls {recalls}", flush=True)
            if min(recalls) >= asked.recall:
                break
    return summed(both, batch=asked.batch, recall=asked.recall, making=making, pictures=asked.pictures)


def summed(both: dict[str, Side], *, batch: int, recall: float, making: float, pictures: int) -> dict[str, Any]:
    """What came out, by side; every list is ours, open_clip."""
    ours, theirs = both.values()
    speeds = [batch / statistics.median(side.seconds[1:]) for side in (ours, theirs)]
    pairs = zip(ours.losses, theirs.losses, strict=True)
    reached = [side.seconds_to(recall) for side in (ours, theirs)]
    # Ours starts later: the pictures are embedded first.
    needed = [None if seconds is None else seconds + extra for seconds, extra in zip(reached, (making, 0), strict=True)]
    unread = [
        batch / statistics.median(whole - read for whole, read in zip(side.seconds[1:], side.reading[1:], strict=True))
        for side in (ours, theirs)
    ]
    return {
        "batch": batch,
        "pictures": pictures,
        "steps": len(ours.losses),
        "largest difference of losses": max(abs(a - b) for a, b in pairs),
        "last losses": [ours.losses[-1], theirs.losses[-1]],
        "recall@5 by step": [ours.recalls, theirs.recalls],
        "samples per second": speeds,
        "ratio": speeds[0] / speeds[1],
        "samples per second without reading": unread,
        "ratio without reading": unread[0] / unread[1],
        "seconds to embed the pictures once": making,
        "recall@5 to reach": recall,
        "seconds to reach it": needed,
        "ratio of times to reach it": None if None in needed else needed[1] / needed[0],  # type: ignore[operator]
        "seconds a step": [ours.seconds, theirs.seconds],
        "seconds of reading a step": [ours.reading, theirs.reading],
    }


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the README's table, see ``table.py``."""
    texts = "a text tower against a locked ViT-B/32"
    made = [("samples per second", "ratio", f"training {texts}, samples/s", WANTED)]
    what = f"the same to recall@5 of {found['recall@5 to reach']:g}, seconds, embedding included"
    made.append(("seconds to reach it", "ratio of times to reach it", what, None))
    return [
        {
            "what": what,
            "ours": found[values][0] and round(found[values][0], 2),
            "peer": found[values][1] and round(found[values][1], 2),
            "peer name": "open_clip",
            "ratio": found[ratio] and round(found[ratio], 2),
            "wanted": wanted,
        }
        for values, ratio, what, wanted in made
    ]


def show(found: dict[str, Any]) -> None:
    """The two sides side by side."""
    table = Table("", "ours", "open_clip", "ratio", "wanted")
    lines = (("samples per second", "ratio"), ("samples per second without reading", "ratio without reading"))
    for values, ratio in (*lines, ("seconds to reach it", "ratio of times to reach it")):
        numbers = ["never" if value is None else f"{value:.2f}" for value in (*found[values], found[ratio])]
        table.add_row(values, *numbers, f"{WANTED:g}" if ratio == "ratio" else "")
    Console(width=120).print(table)


def main() -> None:
    """Run both sides and write ``results/locked.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60, help="at most so many on each side")
    parser.add_argument("--recall", type=float, default=0.25, help="where both sides stop")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "locked.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that its weights are random, which is meant here
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), asked)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    content = {**setting(threads=asked.threads), **found, "rows": rows(found)}
    asked.out.write_text(json.dumps(content, indent=2) + "\n")
    show(found)


if __name__ == "__main__":
    main()
