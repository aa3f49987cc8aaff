"""Models for other programs: graphs, other projects' checkpoints, the model between two, and what a model is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from unicl.data.sources import Source, load_all
from unicl.errors import UserError
from unicl.model import TwoTowers, View
from unicl.published import find, is_own, load, model_of, publish, read_published
from unicl.run import read_job
from unicl.use.export import run as graphs
from unicl.use.export.formats import Format, write
from unicl.use.export.runtime import is_export
from unicl.use.export.settings import NEEDS, ExportSettings, Target, Views
from unicl.use.inspect import Inspection
from unicl.use.inspect import inspect as look
from unicl.use.merge import interpolate, merge

Say = Callable[[str], None]


def inspected(source: str) -> Inspection:
    """What a model is; raises `UserError` as `unicl.load` does."""
    place = find(source)
    if is_export(place) or is_own(place):
        return look(load(place), origin=f"{'an export' if is_export(place) else 'a model of unicl'}: {place}")
    published = read_published(place)
    return look(model_of(published), origin=f"{published.origin}: {place}", notes=published.notes)


def export(
    source: str,
    out: Path,
    *,
    to: str,
    view: Views | None = None,
    asked: dict[str, Any],
    data: Sequence[str] = (),
    say: Say,
    progress: bool = False,
) -> None:
    """Write a model into the new folder ``out``: graphs, or a checkpoint of another project with its card.

    ``asked`` are fields of `ExportSettings`, for graphs alone; ``view`` is all that a graph can give, or instances for
    a checkpoint, unless it is said. Raises `UserError` if the model cannot be written so; then nothing is.
    """
    place = find(source)
    model = merge(_with_weights(source))
    if to in NEEDS:
        settings = ExportSettings(view=view or "both", **asked)
        graphs.export(
            model,
            out,
            to=cast(Target, to),
            settings=settings,
            sources=_sources(place, data),
            progress=progress,
            say=say,
        )
        return
    if asked or data:
        raise UserError(f"{', '.join([*asked, *(['data'] if data else [])])}: these are of graphs, not of {to}")
    views: tuple[View, ...] = ("instances", "classes") if view == "both" else (view or "instances",)
    files = write(
        {each: publish(model, view=each) for each in views},
        out,
        to=cast(Format, to),
        rebuild=model_of,
        home=place if is_own(place) else None,
    )
    say(f"wrote {', '.join(str(file.relative_to(out)) for file in files)} in {out}")


def between(first: str, second: str, out: Path, *, alpha: float) -> None:
    """Write the model between two into the new folder ``out``; see `unicl.use.merge.interpolate`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{str(out)!r} exists and is not an empty folder; choose another --out")
    interpolate(_with_weights(first), _with_weights(second), alpha=alpha).save(out)


def _with_weights(source: str) -> TwoTowers:
    place = find(source)
    if is_export(place):
        raise UserError(f"{source!r} is an export already; give the model that it was made of")
    return load(place)


def _sources(place: Path, data: Sequence[str]) -> Sequence[Source] | None:
    """The data that was named; else the run's own, if it is still there; else none."""
    if data:
        return load_all(data)
    if not (place / "config.yaml").is_file():
        return None
    try:
        return load_all(read_job(place).data)
    except UserError:
        return None
