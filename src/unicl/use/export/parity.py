"""How near an export is to its model: differences, cosines and what a search would find."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl.model import TwoTowers, View
from unicl.use.export.runtime import Engine
from unicl.use.export.sample import Sample
from unicl.use.export.settings import JOINT, Precision, Target, Views

JSON, PAGE = "parity.json", "parity.md"
FEW: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What an export may be away from its model.

    ``difference``: of any number of a unit vector; ``cosine``: the least of a vector with itself before; ``lost``: how
    much of the best cosine a text's first picture may have less, on average.
    """

    difference: float
    cosine: float
    lost: float


BOUNDS: Final[Mapping[Precision, Bounds]] = {
    "fp32": Bounds(difference=1e-4, cosine=0.99999, lost=1e-4),
    "fp16": Bounds(difference=2e-2, cosine=0.999, lost=5e-3),
    "int8": Bounds(difference=1.0, cosine=0.99, lost=2e-2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One tower of an export beside the model's: ``per_second`` and ``before`` are rows a second, here and now."""

    graph: str
    dtype: Precision
    count: int
    difference: float
    mean_difference: float
    cosine: float
    mean_cosine: float
    per_second: float
    before: float
    final: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """Pictures for texts, by export and by model: the share of texts with the same first picture, the mean share of
    the same pictures among the first `FEW`, and how much cosine the first one of the export has ``lost``."""

    texts: int
    pictures: int
    first: float
    few: float
    lost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `unicl.use.export.run.export` has made; ``sizes`` in bytes."""

    kind: Target
    dtype: Precision
    view: Views
    rows: tuple[Row, ...]
    retrieval: Retrieval | None
    bounds: Bounds
    sizes: Mapping[str, int]
    sample: str
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def failures(self) -> tuple[str, ...]:
        """What is out of bounds, a sentence each; empty if the export is good."""
        found = [text for row in self.rows for text in _failures(row, self.bounds if row.final else BOUNDS["fp32"])]
        if self.retrieval is not None and not self.retrieval.lost <= self.bounds.lost:
            lost, allowed = self.retrieval.lost, self.bounds.lost
            found.append(f"texts find pictures that are {lost:.4f} worse on average (allowed: {allowed:g})")
        return tuple(found)

    def save(self, folder: Path) -> None:
        """Write ``parity.json`` and ``parity.md``."""
        content: dict[str, Any] = {**asdict(self), "failures": list(self.failures)}
        (folder / JSON).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        """The report as Markdown."""
        lines = [
            f"# Parity of this export ({self.kind}, {self.dtype})",
            "",
            f"Compared with the model on {self.sample}.",
            "",
            "| graph | numbers | rows | max difference | mean difference | min cosine | mean cosine | rows/s | model |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(_line(row) for row in self.rows),
            "",
        ]
        if self.retrieval is not None:
            lines += [_found(self.retrieval), ""]
        lines += [f"{name}: {size / 1e6:,.1f} MB" for name, size in self.sizes.items()]
        lines += ["", *(f"- {note}" for note in self.notes), *(f"- OUT OF BOUNDS: {text}" for text in self.failures)]
        return "\n".join(lines).rstrip() + "\n"


def compare(
    model: TwoTowers, exported: TwoTowers, sample: Sample, *, view: View, dtype: Precision, final: bool = True
) -> tuple[tuple[Row, ...], Retrieval | None]:
    """The vectors of both for the same pictures and texts; ``final`` is False for a step on the way to the export."""

    def measured(graph: str, embed: Callable[[TwoTowers], Tensor]) -> tuple[Row, Tensor, Tensor]:
        (before, slow), (after, fast) = _timed(embed, model), _timed(embed, exported)
        row = _row(before, after, graph=graph, dtype=dtype, speeds=(len(after) / fast, len(before) / slow), final=final)
        return row, before, after

    image, *images = measured("image", lambda m: m.embed_image(sample.pixels, view=view))
    if model.text is None:
        return (image,), None
    text, *texts = measured("text", lambda m: m.embed_text(sample.texts, view=view))
    scores = [a @ b.T for a, b in zip(texts, images, strict=True)]
    return (image, text), retrieval(*scores)


def compare_joint(
    model: TwoTowers, engine: Engine, sample: Sample, *, view: View, dtype: Precision, scoring: tuple[float, float]
) -> Row:
    """The vectors of a joint graph beside the model's, and the differences of its scores, as cosines, from theirs.

    ``scoring`` is the multiplier and the bias of the scores.
    """
    assert model.tokenizer is not None
    pixels, texts = sample.pixels[:8], sample.texts[:8]
    tokens, mask = model.tokenizer(texts)
    start = time.perf_counter()
    found = engine({"pixels": pixels, "tokens": tokens, "mask": mask})
    seconds = time.perf_counter() - start
    vectors, slow = _timed(
        lambda m: torch.cat([m.embed_image(pixels, view=view), m.embed_text(texts, view=view)]), model
    )
    after = F.normalize(torch.cat([found[name].float() for name in JOINT[:2]]), dim=-1)
    speeds = (len(pixels) / seconds, len(pixels) / slow)
    row = _row(vectors, after, graph="joint", dtype=dtype, speeds=speeds, final=True)
    cosines = vectors[: len(pixels)] @ vectors[len(pixels) :].T
    difference = (cosines - (found["scores"].float() - scoring[1]) / scoring[0]).abs()
    return replace(row, difference=float(difference.max()), mean_difference=float(difference.mean()))


def retrieval(before_TI: Tensor, after_TI: Tensor) -> Retrieval:
    """How two tables of cosines, texts by pictures, agree on the first pictures of each text."""
    few = min(FEW, before_TI.shape[1])
    firsts = [scores.topk(few).indices for scores in (before_TI, after_TI)]
    same = (firsts[0][:, :, None] == firsts[1][:, None, :]).any(2).float().mean()
    chosen = before_TI.gather(1, firsts[1][:, :1])[:, 0]
    return Retrieval(
        texts=before_TI.shape[0],
        pictures=before_TI.shape[1],
        first=float((firsts[0][:, 0] == firsts[1][:, 0]).float().mean()),
        few=float(same),
        lost=float((before_TI.amax(1) - chosen).mean()),
    )


def _timed(embed: Callable[[TwoTowers], Tensor], model: TwoTowers) -> tuple[Tensor, float]:
    """The vectors, and the seconds of the quicker of two passes: the first one may have to prepare something."""
    passes = []
    for _ in range(2):
        start = time.perf_counter()
        vectors = embed(model)
        passes.append(time.perf_counter() - start)
    return vectors, min(passes)


def _row(
    before: Tensor, after: Tensor, *, graph: str, dtype: Precision, speeds: tuple[float, float], final: bool
) -> Row:
    difference = (before.double() - after.double()).abs()
    cosines = F.cosine_similarity(before.double(), after.double(), dim=-1)
    return Row(
        graph=graph,
        dtype=dtype,
        count=len(before),
        difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        per_second=speeds[0],
        before=speeds[1],
        final=final,
    )


def _failures(row: Row, bounds: Bounds) -> list[str]:
    """Written so that what is not a number fails too."""
    found = []
    if not row.difference <= bounds.difference:
        found.append(f"{row.graph} ({row.dtype}) differs by {row.difference:.2e} (allowed: {bounds.difference:g})")
    if not row.cosine >= bounds.cosine:
        found.append(f"{row.graph} ({row.dtype}) has a cosine of {row.cosine:.5f} (wanted: {bounds.cosine:g} at least)")
    return found


def _line(row: Row) -> str:
    kind = row.dtype if row.final else f"{row.dtype} (before int8)"
    numbers = (
        f"{row.difference:.1e}",
        f"{row.mean_difference:.1e}",
        f"{row.cosine:.6f}",
        f"{row.mean_cosine:.6f}",
        f"{row.per_second:,.1f}",
        f"{row.before:,.1f}",
    )
    return f"| {' | '.join((row.graph, kind, str(row.count), *numbers))} |"


def _found(found: Retrieval) -> str:
    return (
        f"Of {found.texts} texts, {found.first:.1%} find the same first of {found.pictures} pictures, and "
        f"{found.few:.1%} of the first {min(FEW, found.pictures)} are the same; "
        f"the first ones are {found.lost:.1e} worse in cosine."
    )
