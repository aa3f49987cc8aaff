"""Losses of parts, forward and backward: ours by tiles, the direct einsum form, and GLoRIA's loop over captions.

FILIP's loss at growing batch, with as many words in every caption and, once, with captions as people write them; the
cosine loss of as many pairs beside it. GLoRIA's local loss at the same size, and at the map and batch of its release.
Time: all sides by turns in one process on the same parts, the fastest turn of each. Memory: each side in a process of
its own, the highest resident size above the one with only the inputs. Values and gradients must agree, or there is no
result.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from unicl.objective import blockwise, tiled
from unicl.objective.blockwise import Side
from unicl.objective.plan import Tiling
from unicl.objective.targets import paired
from unicl.similarity.attended import attended
from unicl.similarity.find import Similarity
from unicl.similarity.tokenwise import tokenwise
from unicl.space import Embedding, Parts

LONGEST: Final = 32
APART: Final = 1e-4
"""The most that gradients may differ. FILIP's are 2e-7 apart; but of two patches that are a word's best but for
rounding, one side may take the one and the other the other, and a single such word at 256 pairs makes 3e-5."""
SHARPNESS, GAIN = 4.0, 5.0
NOTHING_KEPT: Final = Tiling(keep=0)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Parts of images, all of them real, those of texts, which of these are real, and the scale: to a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Pairs of an image of so many places and a caption of at most `LONGEST` words.

    ``varied``: the captions' lengths are log-normal, from 3 to `LONGEST` words with a median of 12, one of the longest.
    """

    system: str
    pairs: int
    places: int = 49
    varied: bool = False

    @property
    def name(self) -> str:
        """For the results."""
        words = "captions of 3 to 32 words" if self.varied else "32 words"
        return f"{self.system}, {self.pairs} pairs, {self.places} places, {words}"


FULL, WRITTEN = Case(system="FILIP", pairs=256), Case(system="FILIP", pairs=256, varied=True)
WIDE, RELEASED = (Case(system="GLoRIA", pairs=n, places=p, varied=True) for n, p in ((256, 49), (48, 361)))
CASES: Final = (Case(system="FILIP", pairs=64), Case(system="FILIP", pairs=128), FULL, WRITTEN, WIDE, RELEASED)


def inputs(case: Case) -> list[Tensor]:
    """The four arguments of a `Loss`: unit vectors for FILIP, for GLoRIA lengths as its projections have them.

    Words resemble places of their image, as in training.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = (0.45 * torch.randn(case.pairs, generator=generator) + 2.5).exp().round().clamp(3, LONGEST)
    lengths[0] = LONGEST
    real = torch.arange(LONGEST) < (lengths[:, None] if case.varied else LONGEST)
    real = real.expand(case.pairs, LONGEST)
    width = 256 if case.system == "FILIP" else 768
    images = torch.randn(case.pairs, case.places, width, generator=generator)
    texts = 0.3 * images[:, :LONGEST] + torch.randn(case.pairs, LONGEST, width, generator=generator)
    if case.system == "FILIP":
        return [F.normalize(images, dim=2), F.normalize(texts, dim=2), real, torch.tensor(1 / 0.07)]
    return [0.5 * images, 0.3 * texts, real, torch.tensor(10.0)]


def ours(score: Similarity, tiling: Tiling = Tiling()) -> Loss:
    """The mean of both softmaxes of a similarity, by tiles."""

    def loss(images: Tensor, texts: Tensor, real: Tensor, scale: Tensor) -> Tensor:
        every = torch.ones(images.shape[:2], dtype=torch.bool)
        sides = [
            side(Embedding(whole=values[:, 0], features=values[:, 0, :0], parts=Parts(values=values, mask=mask)))
            for values, mask in ((images, every), (texts, real))
        ]
        return tiled.softmax(*sides, score=score, target=paired(len(images)), scale=scale, tiling=tiling)

    return loss


def side(embedding: Embedding) -> Side:
    """Rows of this process, each counted once."""
    size = len(embedding.whole)
    return Side(embedding=embedding, counts=torch.ones(size), sizes=(size,))


def cosine(images: Tensor, texts: Tensor, real: Tensor, scale: Tensor) -> Tensor:
    """The loss of CLIP on as many whole vectors."""
    del real
    sides = [side(Embedding(whole=values[:, 0], features=values[:, 0, :0])) for values in (images, texts)]
    return blockwise.softmax(*sides, target=paired(len(images)), scale=scale)


def direct(images: Tensor, texts: Tensor, real: Tensor, scale: Tensor) -> Tensor:
    """FILIP, equations 3 to 5, as they are written: all products of all parts in one table."""
    scores_ITPQ = torch.einsum("ipd,tqd->itpq", images, texts)
    if not real.all():
        scores_ITPQ.masked_fill_(~real[None, :, None], -torch.inf)
    by_image = scores_ITPQ.max(3).values.mean(2)
    best_ITQ = scores_ITPQ.max(2).values.masked_fill(~real, 0)
    return both_ways(scale * by_image, scale * best_ITQ.sum(2) / real.sum(1))


def loop(images: Tensor, texts: Tensor, real: Tensor, scale: Tensor) -> Tensor:
    """GLoRIA as released: a caption after the other, its words for every image, attention, context, cosine."""
    columns = []
    for caption, length in enumerate(real.sum(1).tolist()):
        query = texts[caption, :length].expand(len(images), -1, -1)
        products = torch.bmm(images, query.transpose(1, 2)).softmax(2)
        looks = (SHARPNESS * products.transpose(1, 2)).softmax(2)
        context = torch.bmm(looks, images)
        cosines = (query * context).sum(2) / (query.norm(dim=2) * context.norm(dim=2)).clamp(min=1e-8)
        columns.append((GAIN * cosines).exp().sum(1, keepdim=True).log())
    scores = scale * torch.cat(columns, 1)
    return both_ways(scores, scores)


def both_ways(by_image: Tensor, by_text: Tensor) -> Tensor:
    """The mean of the softmax of each image over texts, and of each text over images."""
    wanted = torch.arange(len(by_image))
    return (F.cross_entropy(by_image, wanted) + F.cross_entropy(by_text.T, wanted)) / 2


SIDES: Final[dict[str, dict[str, Loss]]] = {
    "FILIP": {"ours": ours(tokenwise), "peer": direct, "cosine": cosine},
    "GLoRIA": {"ours": ours(attended), "ours, nothing kept": ours(attended, NOTHING_KEPT), "peer": loop},
}
PEERS: Final = {"FILIP": "direct einsum", "GLoRIA": "loop over captions"}


def given(name: str, case: Case) -> list[Tensor]:
    """What a side is called with; a cosine sees one vector a row, so that it does not pay for parts."""
    images, texts, real, scale = inputs(case)
    return (
        [images[:, :1].clone(), texts[:, :1].clone(), real, scale] if name == "cosine" else [images, texts, real, scale]
    )


def gradients(loss: Loss, arguments: list[Tensor]) -> list[Tensor]:
    """The value and the gradients of images, texts and scale."""
    images, texts, scale = (arguments[k].detach().requires_grad_() for k in (0, 1, 3))
    value = loss(images, texts, arguments[2], scale)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in (images, texts, scale) if leaf.grad is not None)]


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    """The largest relative difference of value and gradients."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True))


def timed(case: Case, *, turns: int) -> dict[str, Any]:
    """Seconds of each side, the fastest turn first, and how far ours is from its peer; raises if that is far."""
    losses = SIDES[case.system]
    arguments = {name: given(name, case) for name in losses}
    made = {name: gradients(loss, arguments[name]) for name, loss in losses.items()}
    apart = max(difference(each, made["peer"]) for name, each in made.items() if name.startswith("ours"))
    if not apart < APART:
        raise SystemExit(f"{case.name}: ours and the {PEERS[case.system]} are {apart:.1e} apart")
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(turns):
        for name, loss in losses.items():
            began = time.perf_counter()
            gradients(loss, arguments[name])
            seconds[name].append(time.perf_counter() - began)
    return {"seconds": {name: sorted(each) for name, each in seconds.items()}, "relative difference": apart}


def resident(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def extra_bytes(name: str, case: Case) -> int:
    """The bytes that one call takes above its inputs, gradients included; needs a process of its own."""
    loss = SIDES[case.system][name]
    gradients(loss, given(name, Case(system=case.system, pairs=2, places=case.places)))
    arguments = given(name, case)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    gradients(loss, arguments)
    return resident("VmHWM") - before


def alone(job: str, number: int, *, turns: int, threads: int) -> Any:
    """What one job on a case answers in a fresh process."""
    options = ["--alone", job, "--case", number, "--turns", turns, "--threads", threads]
    command = [sys.executable, __file__, *(str(each) for each in options)]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(answer.stderr)
    return json.loads(answer.stdout)


def measured(cases: tuple[Case, ...], *, turns: int, threads: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each case's time, memory and ratios."""
    for case in cases:
        number = CASES.index(case)
        found = alone("time", number, turns=turns, threads=threads)
        extra = {name: alone(name, number, turns=1, threads=threads) / 1e6 for name in SIDES[case.system]}
        fastest = {name: each[0] for name, each in found["seconds"].items()}
        ratios = {"time": fastest["peer"] / fastest["ours"], "memory": extra["peer"] / extra["ours"]}
        if "cosine" in fastest:
            ratios["cosine's time"] = fastest["cosine"] / fastest["ours"]
        yield case.name, {**asdict(case), "peer": PEERS[case.system], **found, "extra MB": extra, "ratios": ratios}


def rows(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims that the README shows."""
    claims = (
        (FULL, "seconds", "peer", 1 / 1.3),
        (FULL, "extra MB", "peer", 5.0),
        (FULL, "seconds", "cosine", None),
        (WRITTEN, "seconds", "peer", None),
        (WIDE, "seconds", "peer", 5.0),
        (WIDE, "extra MB", "peer", None),
        (RELEASED, "seconds", "peer", None),
        (RELEASED, "extra MB", "peer", None),
    )
    return [row(found[case.name], case, *claim) for case, *claim in claims if case.name in found]


def row(found: dict[str, Any], case: Case, unit: str, peer: str, wanted: float | None) -> dict[str, Any]:
    """One claim."""
    own, other = (found[unit][name] for name in ("ours", peer))
    own, other = (each[0] if unit == "seconds" else each for each in (own, other))
    name = PEERS[case.system] if peer == "peer" else "the cosine loss"
    what = f"loss of {case.name}, {unit}"
    return {"what": what, "ours": own, "peer": other, "peer name": name, "ratio": other / own, "wanted": wanted}


def show(found: dict[str, dict[str, Any]]) -> None:
    """The table of all cases and sides."""
    table = Table("loss", "side", "seconds", "extra MB", "its time / ours", "its memory / ours")
    for name, each in found.items():
        seconds, extra = {side: times[0] for side, times in each["seconds"].items()}, each["extra MB"]
        for one in seconds:
            numbers = (f"{seconds[one]:.4g}", f"{extra[one]:.4g}")
            ratios = (f"{of[one] / of['ours']:.3g}" for of in (seconds, extra))
            table.add_row(name, each["peer"] if one == "peer" else one, *numbers, *ratios)
    Console(width=150).print(table)


def main() -> None:
    """Measure everything and write ``results/fine_grained.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--system", choices=tuple(SIDES), help="only one of them; writes nothing")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fine_grained.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.alone:
        case = CASES[asked.case]
        print(json.dumps(timed(case, turns=asked.turns) if asked.alone == "time" else extra_bytes(asked.alone, case)))
        return
    cases = tuple(case for case in CASES if asked.system in (None, case.system))
    result: dict[str, Any] = {
        "threads": asked.threads,
        "wait policy of threads": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load before": [round(average, 1) for average in os.getloadavg()],
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {name: version(name) for name in ("unicl", "torch")},
    }
    found = dict(measured(cases, turns=asked.turns, threads=asked.threads))
    show(found)
    if asked.system is None:
        asked.out.write_text(json.dumps({**result, "cases": found, "rows": rows(found)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
