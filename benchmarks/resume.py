"""Kill a training run 20 times with SIGKILL, resume it each time, and compare it with a run that was never stopped.

The run is ``python -m unicl train`` on pictures made here, with dropout, stochastic depth, augmentation, batch norm
and a moving average of the weights. Moments of the kills are random; some fall into the start, some into a save.
Final weights, average, optimiser state and all metrics but those of time have to be equal bit for bit.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

STEPS = 30
SAVE_EVERY = 3
OF_TIME = ("samples/s", "input wait %")
RUN = (
    *("--recipe", "itl", "--image", "resnet10t", "--image-size", "32", "--width", "64", "--batch", "12"),
    *("--steps", str(STEPS), "--save-every", str(SAVE_EVERY), "--seed", "7", "--lr", "1e-3", "--device", "cpu"),
    *("--set", "fit.average=0.9", "--set", "image.drop_path=0.2", "--set", "text.dropout=0.2"),
    *("--set", "text.layers=2", "--set", "text.dim=64", "--set", "text.heads=2", "--set", "text.vocab=600"),
)
COLORS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 220), "yellow": (230, 210, 50)}
SHAPES = ("disc", "bar", "frame")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One moment: what the run was waited for, how long after that, and the last step in the metrics at the kill."""

    moment: str
    delay: float
    step: int


def make_data(folder: Path, *, images: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Two sources: small pictures of coloured shapes in a folder a shape, and a table of captions for some of them."""
    table = folder / "captions.csv"
    for shape in SHAPES:
        (folder / "photos" / shape).mkdir(parents=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "title"))
        for k in range(images):
            color, shape = list(COLORS)[k % len(COLORS)], SHAPES[k % len(SHAPES)]
            name = Path("photos") / shape / f"{k:03d}.png"
            picture(shape, COLORS[color], rng=rng).save(folder / name)
            if k % 3:
                rows.writerow((name, f"a {color} {shape} at place {k}"))
    return "--data", str(folder / "photos"), "--data", f"{table}?image=file&text=title"


def picture(shape: str, color: tuple[int, int, int], *, rng: np.random.Generator) -> Image.Image:
    """A shape of one colour on noise, 40 pixels wide."""
    pixels = rng.integers(0, 90, (40, 40, 3), dtype=np.uint8)
    y, x = np.mgrid[:40, :40] - rng.integers(14, 26, 2)[:, None, None]
    inside = {
        "disc": x**2 + y**2 < 100,
        "bar": np.abs(y) < 4,
        "frame": np.maximum(np.abs(x), np.abs(y)) // 3 == 3,
    }
    pixels[inside[shape]] = color
    return Image.fromarray(pixels)


def start(out: Path, *, data: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    """A run in a process of its own; it goes on if there is something to go on from."""
    begun = (out / "config.yaml").exists()
    arguments = ["--out", str(out)] + (["--resume"] if begun else [*data, *RUN])
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "unicl", "train", *arguments], stdout=file, stderr=file)


def last_step(out: Path) -> int:
    """The last whole line of the metrics."""
    lines = lines_of(out / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; the last one may be cut off by a kill."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def kill_at(moment: str, delay: float, *, target: int, run: subprocess.Popen[bytes], out: Path) -> Kill:
    """Wait for the moment, then for the delay, then SIGKILL. Raises RuntimeError if the run ends before."""
    before = identity(out / "metrics.jsonl")
    reached: dict[str, Callable[[], bool]] = {
        "start": lambda: True,
        "step": lambda: identity(out / "metrics.jsonl") != before and last_step(out) >= target,
        "save": lambda: any((out / "checkpoints").glob("*.part")),
    }
    if moment == "save":
        wait(reached["step"], run)
    wait(reached[moment], run)
    time.sleep(delay)
    if run.poll() is not None:
        raise RuntimeError(f"the run ended by itself with {run.returncode} before the kill at {moment} {target}")
    run.kill()
    run.wait()
    return Kill(moment=moment, delay=round(delay, 4), step=last_step(out))


def identity(path: Path) -> int:
    """Which file this is: a resumed run replaces its metrics, so that their file is another one."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def wait(reached: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    """Look every millisecond until it is reached or the run has ended."""
    while run.poll() is None and not reached():
        time.sleep(0.001)


def moments(kills: int, *, rng: random.Random) -> list[tuple[str, float, int]]:
    """Kinds, delays in seconds and steps of all kills; the steps rise, so that the run gets on."""
    targets = sorted(rng.randint(1, STEPS - SAVE_EVERY - 1) for _ in range(kills))
    kinds = [rng.choices(("step", "save", "start"), (6, 3, 1))[0] for _ in range(kills)]
    longest = {"step": 0.3, "save": 0.02, "start": 6.0}
    return [(kind, rng.uniform(0, longest[kind]), target) for kind, target in zip(kinds, targets, strict=True)]


def finish(out: Path, *, data: tuple[str, ...], log: Path) -> None:
    """Let a run go to its end."""
    if start(out, data=data, log=log).wait() != 0:
        raise RuntimeError(f"the run in {out} failed: {log.read_text()[-2000:]}")


def differences(straight: Path, killed: Path) -> list[str]:
    """What is not equal bit for bit in the last checkpoints and the metrics."""
    found = []
    a, b = (state_of(run / f"checkpoints/step-{STEPS:08d}") for run in (straight, killed))
    found += [
        name for name in sorted(a.keys() | b.keys()) if name not in a or name not in b or not same(a[name], b[name])
    ]
    left, right = ([timeless(line) for line in lines_of(run / "metrics.jsonl")] for run in (straight, killed))
    longest = max(len(left), len(right))
    return found + [f"metrics: line {k}" for k in range(longest) if left[k : k + 1] != right[k : k + 1]]


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by name: the average, the weights that learn, the optimiser's moments."""
    with tempfile.TemporaryDirectory() as folder:
        dcp_to_torch_save(checkpoint / "state", Path(folder) / "state.pt")
        learning: dict[str, torch.Tensor] = torch.load(Path(folder) / "state.pt", weights_only=True)
    average = load_file(checkpoint / "model.safetensors")
    return learning | {f"average.{name}": value for name, value in average.items()}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in type, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what the clock says."""
    return {key: value for key, value in line.items() if key not in OF_TIME}


def trial(folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Both runs, and what was found."""
    data = make_data(folder / "data", images=36, rng=np.random.default_rng(seed))
    straight, killed, log = folder / "straight", folder / "killed", folder / "log"
    began = time.monotonic()
    finish(straight, data=data, log=log)
    done = []
    for moment, delay, target in moments(kills, rng=random.Random(seed)):
        run = start(killed, data=data, log=log)
        done.append(kill_at(moment, delay, target=target, run=run, out=killed))
        Console().print(f"kill {len(done)} at {moment}, step {done[-1].step}", highlight=False)
    finish(killed, data=data, log=log)
    return {
        "kills": [asdict(kill) for kill in done],
        "steps": STEPS,
        "save every": SAVE_EVERY,
        "metrics": len(lines_of(straight / "metrics.jsonl")),
        "last loss": lines_of(straight / "metrics.jsonl")[-1]["loss"],
        "differences": differences(straight, killed),
        "minutes": round((time.monotonic() - began) / 60, 2),
    }


def main() -> int:
    """Run the trial, print its outcome and write ``results/resume.json``; the exit status is 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "resume.json")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # small tensors: threads that spin only slow each other down
    with tempfile.TemporaryDirectory() as folder:
        result = trial(Path(folder), kills=asked.kills, seed=asked.seed)
    found = result["differences"]
    killed = f"a run killed {asked.kills} times and resumed, numbers that differ from the run that never stopped"
    result["rows"] = [{"what": killed, "ours": len(found), "wanted": 0}]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    verdict = "bit-identical" if not found else f"{len(found)} differences: {', '.join(found[:5])}"
    Console().print(f"{len(result['kills'])} kills, {STEPS} steps, {result['minutes']} minutes: {verdict}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
