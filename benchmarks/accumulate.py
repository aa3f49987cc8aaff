"""A batch of 1,024 through chunks of 64: memory, error of the gradient and seconds, ours and two others' on one model.

Three ways to train on a batch that does not fit, on the same towers, weights and data, for the same loss (CLIP's):

* ours, `unicl.train.cached.cached_step`;
* the procedure of open_clip's ``--accum-freq 16`` (``open_clip_train/train.py``) with its ClipLoss: all features are
  kept without gradients, then each micro-batch runs again and the loss of the whole batch is taken and
  back-propagated anew, with the scale as it is;
* sentence-transformers' CachedMultipleNegativesRankingLoss in both directions, whose scale is a fixed number.

Each error is that of the gradient towards the exact one, in float64: the gradient of one graph over the same chunks
with the same random numbers as the first pass. Memory is measured in a fresh process a case, seconds by turns.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from rich.console import Console
from rich.table import Table
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor, nn

from unicl.data.collate import ClassTexts, Collator, Drawn
from unicl.data.text import load_tokenizer
from unicl.model import ModelSettings, TwoTowers
from unicl.recipes import clip as clip_recipe
from unicl.space import Batch, Sample
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.train.cached import cached_step
from unicl.train.memory import peak_bytes
from unicl.train.optim import OptimSettings, adamw
from unicl.train.ranks import Ranks
from unicl.train.step import plain_step

ROWS, CHUNK, SIDE, WIDTH = 1024, 64, 64, 256
ALONE = Ranks()
WANTED = {"memory": 1.3, "error": 1e-6}
WORDS = ("red", "blue", "old", "small", "dog", "car", "house", "tree", "bird", "boat", "near", "under", "with", "and")

Gradient = Callable[[], None]
"""Leaves the gradient of a whole batch in ``.grad``."""


class Pair(nn.Module):
    """Our towers behind the interface of an open_clip model; texts are ``(N, 2, L)``: tokens and mask."""

    def __init__(self, towers: TwoTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        """Features and the scale, as a dict."""
        assert self.towers.text is not None
        return {
            "image_features": self.towers.image(images).whole,
            "text_features": self.towers.text(texts[:, 0], texts[:, 1] > 0).whole,
            "logit_scale": scale_of(self.towers).exp(),
        }


class Sentences(nn.Module):
    """Our towers behind the interface of a SentenceTransformer."""

    def __init__(self, towers: TwoTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings of images or of texts."""
        assert self.towers.text is not None
        if "pixel_values" in features:
            return {"sentence_embedding": self.towers.image(features["pixel_values"]).whole}
        mask = features["attention_mask"] > 0
        return {"sentence_embedding": self.towers.text(features["input_ids"], mask).whole}


def build(*, dropped: bool = False) -> TwoTowers:
    """The same random model every time; ``dropped`` switches on all that is random in its towers."""
    torch.manual_seed(0)
    share = 0.1 if dropped else 0.0
    image = ImageSettings(
        name="vit_tiny_patch16_224", size=SIDE, dropout=share, drop_path=share, patch_drop=2.5 * share
    )
    text = TextSettings(name="clip", tokenizer="clip", layers=2, dim=192, heads=3, dropout=share)
    settings = ModelSettings(image=image, text=text, width=WIDTH, terms=clip_recipe().terms)
    return TwoTowers(settings, tokenizer=load_tokenizer("clip", context=77)).train()


def data(rows: int) -> Batch:
    """Noise as images, each with a caption of its own of 6 to 23 tokens."""
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (rows, 3, SIDE, SIDE), dtype=np.uint8))
    captions = [f"number {k} {' '.join(rng.choice(WORDS, rng.integers(1, 17)))}" for k in range(rows)]
    drawn = [
        Drawn(sample=Sample(id=str(k), captions=(caption,)), source="bench", caption=caption, image=image)
        for k, (caption, image) in enumerate(zip(captions, images, strict=True))
    ]
    texts = ClassTexts(templates={}, names={})
    batch = Collator(mode="sample", texts=texts, tokenizer=load_tokenizer("clip", context=77))(drawn, rng_key=(0,))
    assert torch.equal(batch.text_index, torch.arange(rows))
    return batch


def scale_of(towers: TwoTowers) -> nn.Parameter:
    """The logarithm of the scale of the one contrast."""
    return towers.objective.scales()["instances"].log_scale


def ours(towers: TwoTowers, batch: Batch) -> Gradient:
    """The cached step."""
    return lambda: void(cached_step(towers, batch, ranks=ALONE, precision="fp32", chunk=CHUNK))


def plain(towers: TwoTowers, batch: Batch) -> Gradient:
    """The whole batch at once."""
    return lambda: void(plain_step(towers, batch, ranks=ALONE, precision="fp32"))


def accumulated(towers: TwoTowers, batch: Batch) -> Gradient:
    """What open_clip's training loop does with ``--accum-freq``, line by line, without its optimiser."""
    model, loss = Pair(towers), open_clip.ClipLoss()
    micro_batches = list(zip(batch.images.split(CHUNK), stacked(batch).split(CHUNK), strict=True))

    def gradient() -> None:
        kept: dict[str, list[Tensor]] = {"image_features": [], "text_features": []}
        for images, texts in micro_batches:
            with torch.no_grad():
                out = model(images, texts)
            for name, features in kept.items():
                features.append(out[name])
        for j, (images, texts) in enumerate(micro_batches):
            out = model(images, texts)
            inputs = {name: torch.cat([*each[:j], out[name], *each[j + 1 :]]) for name, each in kept.items()}
            sum(loss(**inputs, logit_scale=out["logit_scale"], output_dict=True).values()).backward()

    return gradient


def ranked(towers: TwoTowers, batch: Batch) -> Gradient:
    """sentence-transformers' cached loss in both directions, which together are CLIP's."""
    loss = CachedMultipleNegativesRankingLoss(
        nn.Sequential(Sentences(towers)),  # type: ignore[arg-type]
        scale=float(scale_of(towers).detach().exp()),
        mini_batch_size=CHUNK,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    columns = [
        {"pixel_values": batch.images},
        {"input_ids": batch.tokens, "attention_mask": batch.token_mask.long()},
    ]
    return lambda: void(loss(columns, torch.zeros(0)).backward())


SIDES = {"ours": ours, "open_clip": accumulated, "sentence-transformers": ranked}


def exact(towers: TwoTowers, batch: Batch, *, order: str) -> Gradient:
    """The loss by its formula, of one graph over the chunks in the order in which a side first runs them."""
    assert towers.text is not None
    image, text = towers.image, towers.text
    lengths = batch.token_mask.sum(1)
    rows = lengths.argsort(stable=True) if order == "ours" else torch.arange(len(lengths))
    place = rows.argsort()

    def read(part: Tensor) -> Tensor:
        longest = int(lengths[part].max()) if order != "open_clip" else lengths.max()
        return text(batch.tokens[part, :longest], batch.token_mask[part, :longest]).whole

    def gradient() -> None:
        if order == "open_clip":
            pairs = [
                (image(i).whole, read(t)) for i, t in zip(batch.images.split(CHUNK), rows.split(CHUNK), strict=True)
            ]
            images, texts = (torch.cat(column) for column in zip(*pairs, strict=True))
        else:
            images = torch.cat([image(part).whole for part in batch.images.split(CHUNK)])
            texts = torch.cat([read(part) for part in rows.split(CHUNK)])[place]
        scores, target = scale_of(towers).exp() * images @ texts.T, torch.arange(len(images))
        cross_entropy = nn.functional.cross_entropy
        ((cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2).backward()

    return gradient


def void(_: object) -> None:
    """Drop a result."""


def stacked(batch: Batch) -> Tensor:
    """Tokens and mask as one tensor ``(N, 2, L)``."""
    return torch.stack([batch.tokens, batch.token_mask.long()], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """The gradient of all tower parameters as one vector, and that of the scale (None if it does not learn)."""

    towers: Tensor
    scale: float | None

    @classmethod
    def of(cls, towers: TwoTowers, gradient: Gradient) -> "Gradients":
        """What a side leaves, from one seed."""
        towers.zero_grad(set_to_none=True)
        torch.manual_seed(7)
        gradient()
        parameters = [p for part in (towers.image, towers.text) if part is not None for p in part.parameters()]
        flat = torch.cat(
            [torch.zeros(p.numel(), dtype=p.dtype) if p.grad is None else p.grad.flatten() for p in parameters]
        )
        scale = scale_of(towers).grad
        return cls(towers=flat, scale=None if scale is None else float(scale))

    def error(self, right: "Gradients") -> dict[str, float | None]:
        """Relative distance of the towers' gradient, and the scale's gradient over what it should be."""
        distance = (self.towers - right.towers).norm() / right.towers.norm()
        assert right.scale is not None
        return {"towers": float(distance), "scale over exact": None if self.scale is None else self.scale / right.scale}


def errors() -> dict[str, Any]:
    """Of each side, in float64, with dropout off and on; with dropout off, the plain step is the measure."""
    batch, found = data(ROWS), {}
    for name, dropped in (("dropout off", False), ("dropout on", True)):
        towers = build(dropped=dropped).double()
        whole = None if dropped else Gradients.of(towers, plain(towers, batch))
        found[name] = {}
        for side, start in SIDES.items():
            right = whole or Gradients.of(towers, exact(towers, batch, order=side))
            found[name][side] = Gradients.of(towers, start(towers, batch)).error(right)
    return found


def seconds(*, repeats: int) -> dict[str, Any]:
    """Of each side and of a plain step, by turns in one process in float32; and the float32 error beside them."""
    batch, towers = data(ROWS), build()
    sides = {name: start(towers, batch) for name, start in {"plain": plain, **SIDES}.items()}
    right = Gradients.of(towers, sides["plain"])
    found: dict[str, Any] = {name: {"error": Gradients.of(towers, side).error(right)} for name, side in sides.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            wall, processor = time.perf_counter(), time.process_time()
            side()
            taken[name].append((time.perf_counter() - wall, time.process_time() - processor))
    for name, each in taken.items():
        found[name]["seconds"], found[name]["processor seconds"] = (
            statistics.median(t) for t in zip(*each, strict=True)
        )
    return found


def memory(case: str) -> dict[str, int]:
    """What one step takes beyond model, optimiser and batch: resident memory at its peak, and tensors."""
    name, rows = case.split("@")
    towers, batch = build(), data(int(rows))
    optimiser = adamw(towers, OptimSettings())
    run = {"plain": plain, **SIDES}[name]
    run(towers, data(2))()  # what is loaded at the first use is not the step's
    optimiser.zero_grad(set_to_none=True)
    step = run(towers, batch)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc: give back what the step before has left free
    before = resident()
    with highest() as peak:
        step()
    found = {"resident": peak[0] - before}
    if name == "ours" or int(rows) == CHUNK:
        optimiser.zero_grad(set_to_none=True)
        found["tensors"] = peak_bytes(step, device=torch.device("cpu"))
    return found


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def highest() -> Iterator[list[int]]:
    """Samples the resident memory every millisecond."""
    peak, ended = [resident()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def alone(part: str, *, threads: int, repeats: int) -> Any:
    """One part of the benchmark in a fresh process, whose allocator gives back at once what is freed."""
    command = [sys.executable, __file__, "--part", part, "--threads", str(threads), "--repeats", str(repeats)]
    # Otherwise the peak is that of the allocator's habits.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"} if "@" in part else {}
    ran = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stderr)
    return json.loads(ran.stdout.splitlines()[-1])


def show(content: dict[str, Any]) -> None:
    """All numbers as a table."""
    table = Table(
        "step", "peak MB", "of a batch of 64", "towers", "scale", "dropped: towers", "dropped: scale", "seconds"
    )
    small = content["memory"][f"plain@{CHUNK}"]["resident"]
    for case, taken in content["memory"].items():
        side, rows = case.split("@")
        off, on = (content["errors"][name].get(side) for name in ("dropout off", "dropout on"))
        time_taken = content["seconds"].get(side) if int(rows) == ROWS else None
        table.add_row(
            f"{side}, {rows}" + (f" in chunks of {CHUNK}" if side in SIDES else ""),
            f"{taken['resident'] / 1e6:.0f}",
            f"{taken['resident'] / small:.2f}",
            *(text for error in (off, on) for text in written(error)),
            "" if time_taken is None else f"{time_taken['seconds']:.2f}",
        )
    console = Console(width=140)
    console.print(table)
    console.print("towers: relative error of the gradient; scale: its gradient over the exact one", highlight=False)
    for name, reached in content["reached"].items():
        console.print(f"{name}: {reached:.2e}, wanted at most {content['wanted'][name]:g}", highlight=False)


def written(error: dict[str, float | None] | None) -> tuple[str, str]:
    """An error as two cells."""
    if error is None:
        return "", ""
    scale = error["scale over exact"]
    return f"{error['towers']:.1e}", "fixed" if scale is None else f"{scale:.6f}"


def reached(content: dict[str, Any]) -> dict[str, float]:
    """The two numbers that are wanted: memory over that of the small batch, and our largest error."""
    taken = content["memory"]
    found = [content["errors"][name]["ours"] for name in content["errors"]]
    worst = max(max(error["towers"], abs(error["scale over exact"] - 1)) for error in found)
    return {"memory": taken[f"ours@{ROWS}"]["resident"] / taken[f"plain@{CHUNK}"]["resident"], "error": worst}


def claims(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What the README shows."""
    taken, on, clock = content["memory"], content["errors"]["dropout on"], content["seconds"]
    ours, small = (taken[case]["resident"] / 1e6 for case in (f"ours@{ROWS}", f"plain@{CHUNK}"))
    peer = "open_clip --accum-freq"
    lines = [
        (
            f"{ROWS:,} pairs in chunks of {CHUNK}, peak MB",
            ours,
            small,
            f"a plain {CHUNK}",
            small / ours,
            1 / WANTED["memory"],
        ),
        ("the same, error of the towers' gradients, dropout on", on["ours"]["towers"], on["open_clip"]["towers"], peer),
        (
            "the same, gradient of the scale over the exact one",
            *(on[n]["scale over exact"] for n in ("ours", "open_clip")),
            peer,
        ),
        ("the same, seconds", *(clock[name]["seconds"] for name in ("ours", "open_clip")), peer),
    ]
    keys = ("what", "ours", "peer", "peer name", "ratio", "wanted")
    return [dict(zip(keys, line, strict=False)) for line in lines]


def main() -> None:
    """Run every part in a process of its own, and write ``results/accumulate.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", help="one part alone: errors, seconds, or SIDE@ROWS; prints JSON")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "accumulate.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.part:
        parts = {"errors": errors, "seconds": lambda: seconds(repeats=asked.repeats)}
        print(json.dumps(parts.get(asked.part, lambda: memory(asked.part))()))
        return
    cases = [f"plain@{CHUNK}", f"plain@{ROWS}", *(f"{side}@{ROWS}" for side in SIDES)]
    content = {
        **setting(threads=asked.threads),
        "memory": {case: alone(case, threads=asked.threads, repeats=1) for case in cases},
        "errors": alone("errors", threads=asked.threads, repeats=1),
        "seconds": alone("seconds", threads=asked.threads, repeats=asked.repeats),
    }
    content |= {"wanted": WANTED, "reached": reached(content)}
    content["rows"] = claims(content)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(content, indent=2) + "\n")
    show(content)


def setting(*, threads: int) -> dict[str, Any]:
    """On what it was measured, and how."""
    packages = ("unicl", "torch", "timm", "transformers", "open_clip_torch", "sentence-transformers")
    return {
        "model": f"vit_tiny_patch16 at {SIDE} pixels, a text transformer of 2 layers and width 192, {WIDTH} wide",
        "batch": ROWS,
        "chunk": CHUNK,
        "dropped when on": "10 % of features, attention weights and residual branches, 25 % of patches",
        "how": {
            "memory": "bytes beyond model, optimiser and batch; float32",
            "errors": "float64; towers: relative norm of the difference; scale: its gradient over the exact one",
            "sentence-transformers": "its scale is a fixed number and has no gradient (null)",
        },
        "threads": threads,
        "wait policy of threads": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load before": [round(average, 1) for average in os.getloadavg()],
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


if __name__ == "__main__":
    main()
