"""The contrastive loss, forward and backward: ours blockwise, open_clip's ClipLoss, and UniCL as its paper has it.

Time: all sides by turns in one process on the same vectors. Memory: each side in a process of its own, the highest
resident size above the one with only the inputs. The floor is the time of the matrix products alone: four of N x N x d
when scores are made again in the backward pass, three when they are kept. Values and gradients are compared first.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from open_clip import ClipLoss
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from unicl.objective import blockwise
from unicl.objective.blockwise import Side
from unicl.objective.plan import Tiling
from unicl.objective.targets import Target, paired, same_key
from unicl.space import Embedding, Keys

WIDTH, CLASSES = 512, 1000
KEEP = 400 << 20

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def inputs(size: int) -> tuple[Tensor, Tensor]:
    """Unit vectors of images and of texts that resemble them, as in training."""
    generator = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(size, WIDTH, generator=generator) for _ in range(2))
    return F.normalize(images, dim=1), F.normalize(0.3 * images + noise, dim=1)


def labels(size: int) -> Tensor:
    """A class for each row."""
    return torch.randint(1, CLASSES + 1, (size,), generator=torch.Generator().manual_seed(1))


def ours(target: Target, *, keep: int, size: int) -> Loss:
    """The blockwise softmax; ``keep`` bytes of scores may stay for the backward pass."""
    ones = torch.ones(size)

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        sides = [Side(embedding=Embedding(whole=t, features=t), counts=ones, sizes=(size,)) for t in (images, texts)]
        return blockwise.softmax(sides[0], sides[1], target=target, scale=scale, tiling=Tiling(keep=keep))

    return loss


def textbook(size: int) -> Loss:
    """UniCL, algorithm 1, line by line: all scores, all targets, two soft cross-entropies."""
    number = labels(size)

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        scores = scale * images @ texts.T
        target = (number[:, None] == number[None]).float()
        rows, columns = target / target.sum(1, keepdim=True), target.T / target.T.sum(1, keepdim=True)
        both = -(rows * scores.log_softmax(1)).sum(1).mean() - (columns * scores.T.log_softmax(1)).sum(1).mean()
        return both / 2

    return loss


def sides(size: int) -> dict[str, Loss]:
    """All that is compared, by name."""
    classes = same_key(Keys.single(labels(size)), Keys.single(labels(size)))
    theirs = ClipLoss()
    return {
        "ours": ours(paired(size), keep=0, size=size),
        "ours, scores kept": ours(paired(size), keep=KEEP, size=size),
        "open_clip": lambda images, texts, scale: theirs(images, texts, scale),
        "ours, classes": ours(classes, keep=0, size=size),
        "textbook UniCL": textbook(size),
    }


def gradients(loss: Loss, images: Tensor, texts: Tensor, *, scale: float) -> list[Tensor]:
    """The value and the gradients of one call."""
    leaves = [images.detach().requires_grad_(), texts.detach().requires_grad_()]
    multiplier = torch.tensor(scale, requires_grad=True)
    value = loss(leaves[0], leaves[1], multiplier)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in (*leaves, multiplier) if leaf.grad is not None)]


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    """The largest relative difference of value and gradients."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True))


def product_seconds(images: Tensor, texts: Tensor, *, repeats: int) -> float:
    """The time of one N x N x d product in blocks as large as a processor likes them."""
    rows = 1024
    block = torch.empty(rows, len(texts))
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for start in range(0, len(images), rows):
            torch.mm(images[start : start + rows], texts.T, out=block)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def timed(size: int, *, scale: float, repeats: int, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The fastest turn of each side, and the floor: other work on the machine only ever adds."""
    images, texts = inputs(size)
    compared = {name: loss for name, loss in sides(size).items() if names is None or name in names}
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    floor = []
    for turn in range(repeats + 1):
        floor.append(product_seconds(images, texts, repeats=1))
        for name, loss in compared.items():
            began = time.perf_counter()
            gradients(loss, images, texts, scale=scale)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    fastest = {name: min(each) for name, each in seconds.items()}
    return {"seconds": fastest, "every": seconds, "one product": min(floor[1:])}


def agree(size: int, *, scale: float) -> dict[str, float]:
    """How far ours is from either peer, in value and gradients."""
    images, texts = inputs(size)
    made = {name: gradients(loss, images, texts, scale=scale) for name, loss in sides(size).items()}
    return {
        "ours to open_clip": difference(made["ours"], made["open_clip"]),
        "ours, scores kept, to open_clip": difference(made["ours, scores kept"], made["open_clip"]),
        "ours, classes, to textbook UniCL": difference(made["ours, classes"], made["textbook UniCL"]),
    }


def resident(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def measured_alone(name: str, size: int) -> None:
    """Print the bytes that one call takes above its inputs; run in a process of its own."""
    warm = [t[:64].clone() for t in inputs(64)]
    gradients(sides(64)[name], warm[0], warm[1], scale=14.3)
    images, texts = inputs(size)
    loss = sides(size)[name]
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    gradients(loss, images, texts, scale=14.3)
    print(resident("VmHWM") - before)


def memory(name: str, size: int, *, threads: int) -> int:
    """Extra bytes of a side."""
    command = [sys.executable, __file__, "--alone", name, "--size", str(size), "--threads", str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims that the README shows."""
    times, extra = result["8192"]["seconds"], result["extra bytes"]
    floor = result["8192"]["one product"]
    wide = result["32768"]
    table = [
        ("loss, 8,192 pairs, seconds", times["ours"], times["open_clip"], "open_clip", 1.8, None),
        ("the same, scores kept in 400 MB", times["ours, scores kept"], times["open_clip"], "open_clip", 2.4, None),
        ("loss, 1,000 classes, seconds", times["ours, classes"], times["textbook UniCL"], "textbook UniCL", 2.5, None),
        (
            "loss, 8,192 pairs, extra MB",
            extra["ours 8192"] / 1e6,
            extra["open_clip 8192"] / 1e6,
            "open_clip",
            5.0,
            None,
        ),
        ("share of the floor of four products", times["ours"], 4 * floor, "four products", 0.8, None),
        ("the same, 32,768 pairs", wide["seconds"]["ours"], 4 * wide["one product"], "four products", 0.8, None),
        ("loss, 32,768 pairs, extra MB", extra["ours 32768"] / 1e6, 500.0, "the limit", 1.0, None),
    ]
    return [
        {"what": what, "ours": own, "peer": peer, "peer name": name, "ratio": peer / own, "wanted": wanted}
        for what, own, peer, name, wanted, _ in table
    ]


def show(result: dict[str, Any]) -> None:
    """The table of all claims."""
    table = Table("what", "ours", "peer", "", "ratio", "wanted")
    for row in result["rows"]:
        numbers = [f"{row[key]:.3g}" for key in ("ours", "peer")]
        table.add_row(row["what"], *numbers, row["peer name"], f"{row['ratio']:.2f}", f"{row['wanted']:g}")
    Console(width=120).print(table)


def main() -> None:
    """Measure everything and write ``results/objective.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=8192, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "objective.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.alone:
        measured_alone(asked.alone, asked.size)
        return
    result: dict[str, Any] = {
        "width": WIDTH,
        "threads": asked.threads,
        "wait policy of threads": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load before": [round(average, 1) for average in os.getloadavg()],
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {name: version(name) for name in ("unicl", "torch", "open_clip_torch")},
        "relative difference, 2048": agree(2048, scale=14.3),
        "relative difference, 2048, scale 100": agree(2048, scale=100.0),
        "8192": timed(8192, scale=14.3, repeats=asked.repeats),
        "8192, scale 100": timed(8192, scale=100.0, repeats=2, names=("ours", "ours, scores kept", "open_clip")),
        "32768": timed(32768, scale=14.3, repeats=1, names=("ours",)),
        "extra bytes": {
            f"{name} {size}": memory(name, size, threads=asked.threads)
            for name, size in (
                ("ours", 8192),
                ("ours, scores kept", 8192),
                ("open_clip", 8192),
                ("textbook UniCL", 8192),
                ("ours", 32768),
            )
        },
    }
    result["rows"] = rows(result)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
