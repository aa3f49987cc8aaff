"""Results for other programs and for the terminal: lines of JSON, and a table."""

import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unicl.space import ImageSource, Slice
from unicl.use.classify import Classes
from unicl.use.files import printable
from unicl.use.search import Found

Results = Found | Classes
METER = 12


def json_lines(results: Results) -> str:
    """One JSON object a line: a hit (rank, score, id, path), or a picture with its classes or its error.

    Of a model that compares more than whole vectors, hits say ``by`` which similarity the score is, and have their
    ``cosine`` too if it is another.
    """
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(results))


def show(results: Results, console: Console) -> None:
    """Print the results as a table, and below it how many pictures were looked at and could not be read."""
    console.print(_hits(results) if isinstance(results, Found) else _classes(results))
    console.print(Text(summary(results), style="dim"))


def summary(results: Results) -> str:
    """What was looked at, in one line: ``12 of 340 pictures; 2 cannot be read``."""
    if isinstance(results, Found):
        text = f"{len(results.hits):,} of {_pictures(results.searched)}{_ranked(results)}"
    else:
        text = f"{_pictures(len(results.rows))}, {len(results.names):,} classes"
        text = f"{text}; {results.note}" if results.note else text
    bad = len(results.skipped)
    return f"{text}; {bad:,} cannot be read" if bad else text


def _rows(results: Results) -> Iterator[dict[str, object]]:
    if isinstance(results, Found):
        for hit in results.hits:
            score = {"score": round(hit.score, 6), **_by(results, cosine=hit.cosine)}
            yield {"rank": hit.rank, **score, "id": hit.id, **_place(hit.image)}
        return
    for row in results.rows:
        answers = [{"name": name, "probability": round(share, 6)} for name, share in row.answers]
        note = {"note": results.note} if results.note else {}
        yield {"id": row.id, **_place(row.image), "classes": answers, **note}
    for item in results.skipped:
        yield {"id": item.id, **_place(item.image), "error": item.reason}


def _by(found: Found, *, cosine: float) -> dict[str, object]:
    if found.compared:
        return {"by": found.by, "cosine": round(cosine, 6)}
    return {"by": found.by} if found.note else {}


def _ranked(found: Found) -> str:
    if found.compared:
        return f"; the {found.compared:,} nearest ranked by {found.by}"
    return f"; ranked by whole vectors, {found.note}" if found.note else ""


def _place(image: ImageSource | None) -> dict[str, object]:
    if isinstance(image, Slice):
        return {"path": printable(str(image.path)), "offset": image.offset, "size": image.size}
    return {"path": printable(str(image))} if isinstance(image, Path) else {}


def _hits(found: Found) -> Table:
    table = Table(title=Text(str(found.query), style="bold"), title_justify="left", box=None, pad_edge=False)
    table.add_column("", justify="right", style="dim")
    table.add_column("score", justify="right")
    if found.compared:
        table.add_column("cosine", justify="right", style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("picture", overflow="fold")
    best = max((hit.score for hit in found.hits), default=0.0)
    for hit in found.hits:
        scores = (f"{hit.score:.3f}", f"{hit.cosine:.3f}") if found.compared else (f"{hit.score:.3f}",)
        table.add_row(str(hit.rank), *scores, _meter(hit.score / best if best > 0 else 0.0), Text(hit.id))
    return table


def _classes(classes: Classes) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("picture", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("then", overflow="fold", style="dim")
    for row in classes.rows:
        (name, share), *others = row.answers
        then = ", ".join(f"{other} {part:.0%}" for other, part in others[:4])
        table.add_row(Text(row.id), Text(name, style="bold"), f"{share:.1%}", _meter(share), Text(then))
    return table


def _meter(share: float) -> Text:
    full = round(METER * min(1.0, max(0.0, share)))
    return Text("━" * full + " " * (METER - full), style="cyan")


def _pictures(number: int) -> str:
    return f"{number:,} picture{'' if number == 1 else 's'}"
