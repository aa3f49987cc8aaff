"""The similarity task: do cosines order pairs as people do (CxC: STS, SIS and SITS)."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from unicl import compare
from unicl.errors import UserError
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.correlation import DRAWS, correlations, drawn_correlations
from unicl.evaluate.exact import BITS, grid, require_finite
from unicl.evaluate.job import Job, Plan
from unicl.evaluate.naming import numbered
from unicl.evaluate.parts import encoded_texts
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.rated import Graded
from unicl.evaluate.report import Fact, Result, Score
from unicl.evaluate.scoring import measured
from unicl.model import TwoTowers
from unicl.space import Embedding

NAMES: Final = {"sts": "text with text (STS)", "sis": "image with image (SIS)", "sits": "text with image (SITS)"}


def cannot_correlate(plan: Plan) -> str | None:
    """Correlation needs rated pairs, and a text tower where they have texts."""
    if not plan.options.rated:
        return "no rated pairs were given (--rated)"
    if plan.model.text is None and any(table.kind != "sis" for table in plan.options.rated):
        return f"the model was trained with {plan.model.settings.recipe!r} and has no text tower"
    return None


def run_similarity(job: Job) -> Result:
    """Each table's correlations, and the mean of the tables' if there are several."""
    place = {sample.id: row for row, sample in enumerate(job.pictures.samples)}
    scores, facts, drawn = [], _definitions(), []
    for key, whole in zip(_keys(job.options.rated), job.options.rated, strict=True):
        table = whole.among(place)
        if len(table.first) < 2:
            raise UserError(f"{table.name}: fewer than two rated pairs have images that can be read")
        cosines = _scores(job.model, job.pictures, table, place=place)
        queries = numbered(table.first)[1]
        drawn.append(drawn_correlations(cosines, table.ratings, queries_N=queries, seed=job.options.bootstrap.seed))
        scores += _table_scores(key, table, cosines=cosines, drawn=drawn[-1], queries=queries, job=job)
        facts |= _told(table, drawn=drawn[-1], queries=queries, left_out=len(whole.first) - len(table.first))
    if len(drawn) > 1:
        overall = torch.stack(drawn).mean(0)
        pairs = sum(len(table.first) for table in job.options.rated)
        first = _drawn_score("similarity/mean", "mean of the tables", overall, n=pairs, bootstrap=job.options.bootstrap)
        scores.insert(0, first)
        facts["mean of the tables, over draws"] = _plus_minus(overall)
    return Result(task="similarity", title="Similarity, against people's ratings", scores=tuple(scores), facts=facts)


def _scores(model: TwoTowers, pictures: Pictures, table: Graded, *, place: Mapping[str, int]) -> Tensor:
    """``(N,)`` float64 cosines of the pairs; of a model that compares parts, text with image by its own score."""
    sides = list(zip((table.first, table.second), table.images, strict=True))
    if table.kind == "sits" and pictures.embedding is not None and compare.reads_parts(model, "instances"):
        images, texts = (next(side for side, is_image in sides if is_image is wanted) for wanted in (True, False))
        return _part_scores(model, pictures.embedding.select(_places(images, place)), texts)
    first, second = (
        grid(pictures.instances[_places(side, place)] if is_image else _embedded(model, side))
        for side, is_image in sides
    )
    return (first * second).sum(1) * 4.0**-BITS


def _part_scores(model: TwoTowers, images: Embedding, texts: Sequence[str]) -> Tensor:
    distinct, rows = numbered(texts)
    found = compare.pair_scores(model, images, encoded_texts(model, distinct).select(rows), view="instances")
    return torch.stack(found).double().mean(0)


def _embedded(model: TwoTowers, texts: Sequence[str]) -> Tensor:
    distinct, rows = numbered(texts)
    return require_finite(model.embed_text(distinct, view="instances"), what="text embeddings")[rows]


def _places(ids: Sequence[str], place: Mapping[str, int]) -> Tensor:
    return torch.tensor([place[one] for one in ids], dtype=torch.int64)


def _table_scores(key: str, table: Graded, *, cosines: Tensor, drawn: Tensor, queries: Tensor, job: Job) -> list[Score]:
    bootstrap, name, pairs = job.options.bootstrap, NAMES[table.kind], len(table.first)
    statistic = correlations(cosines, table.ratings, queries_N=queries)
    ((value, low, high),) = measured(statistic, samples=int(queries.max()) + 1, bootstrap=bootstrap)
    return [
        _drawn_score(f"{key}/spearman", f"{name}, Spearman over draws", drawn, n=pairs, bootstrap=bootstrap),
        Score(
            key=f"{key}/all_pairs",
            name=f"{name}, Spearman of all pairs",
            value=value,
            low=low,
            high=high,
            n=pairs,
            unit="correlation",
        ),
    ]


def _drawn_score(key: str, name: str, drawn: Tensor, *, n: int, bootstrap: Bootstrap) -> Score:
    tail = (1 - bootstrap.level) / 2
    low, high = drawn.quantile(torch.tensor([tail, 1 - tail], dtype=drawn.dtype)).tolist()
    return Score(key=key, name=name, value=float(drawn.mean()), low=low, high=high, n=n, unit="correlation")


def _keys(tables: Sequence[Graded]) -> list[str]:
    kinds = [table.kind for table in tables]
    return [
        f"similarity/{kind}" if kinds.count(kind) == 1 else f"similarity/{kind}/{table.name}"
        for kind, table in zip(kinds, tables, strict=True)
    ]


def _told(table: Graded, *, drawn: Tensor, queries: Tensor, left_out: int) -> dict[str, Fact]:
    facts: dict[str, Fact] = {
        f"{table.name}, pairs": len(table.first),
        f"{table.name}, queries (first column)": int(queries.max()) + 1,
        f"{table.name}, over draws": _plus_minus(drawn),
    }
    if left_out:
        facts[f"{table.name}, pairs left out whose image cannot be read"] = left_out
    return facts


def _definitions() -> dict[str, Fact]:
    return {
        "Spearman over draws": (
            f"mean of {DRAWS:,} rank correlations, times 100, each of half of the queries, drawn with replacement, and "
            "one rated pair of each (CxC); the interval is that of the draws"
        ),
        "Spearman of all pairs": "one rank correlation, times 100; the interval draws queries with their pairs again",
    }


def _plus_minus(drawn: Tensor) -> str:
    return f"{100 * float(drawn.mean()):.1f} ± {100 * float(drawn.std()):.1f}"
