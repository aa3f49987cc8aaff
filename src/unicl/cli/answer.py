"""The verbs that ask a model: embed, classify, search."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from unicl.cli.say import needs, shown
from unicl.errors import UserError


def embed(
    model: str,
    *photos: str,
    out: Path,
    view: Literal["instances", "classes"] = "instances",
    batch: int = 64,
    dtype: Literal["float32", "float16"] = "float32",
    parts: bool = True,
) -> int:
    """Write the vectors of pictures to a folder; goes on where it was stopped.

    Example: `unicl embed runs/a photos/ --out vectors/`

    Parameters
    ----------
    photos
        Folders, files, tars or tables.
    view
        What the vectors are for: instances (search, retrieval) or classes.
    parts
        Of a model that compares parts, keep those of each picture too, so that a search can rank by them.
    """
    from unicl.published import load
    from unicl.use.embed import embed as run
    from unicl.use.parts import told

    needs(photos, "unicl embed runs/a photos/ --out vectors/")
    loaded = load(model)
    vectors = run(loaded, photos, out=out, batch=batch, view=view, dtype=dtype, parts=parts, progress=True)
    for item in vectors.skipped():
        Console(stderr=True).print(f"left out {item.id}: {item.reason}", markup=False)
    made = vectors.manifest
    print(f"{made.count} vectors of {made.width}{told(loaded, made)} in {out}, {made.skipped} left out")
    return 0


def classify(
    model: str,
    *photos: str,
    names: str | None = None,
    prompts: str | None = None,
    top: int = 5,
    batch: int = 64,
    out: Path | None = None,
) -> int:
    """Say which of some names each picture shows.

    Example: `unicl classify runs/a photos/ --names "apple,pear,plum" --out sheet.html`

    Parameters
    ----------
    names
        Names with commas between, or a .txt or .json file; the model's own classes if not given.
    out
        Write a sheet: .html, .png or .jsonl.
    """
    from unicl.data.prompts import prompt_set
    from unicl.published import load
    from unicl.use.classify import classify as run
    from unicl.use.classify import parse_names
    from unicl.use.sheet import require_ending

    needs(photos, "unicl classify runs/a photos/ --names a,b,c")
    if out is not None:
        require_ending(out)
    wanted = parse_names(names) if names else ()
    sets = prompt_set(prompts) if prompts else ()
    found = run(load(model), photos, names=wanted, templates=sets, top=top, batch=batch, progress=True)
    return shown(found, out)


def search(
    model: str,
    *photos_and_query: str,
    top: int = 12,
    rerank: int = 100,
    batch: int = 64,
    out: Path | None = None,
) -> int:
    """Find pictures by a text, by a picture, or by a sum of both; the last argument is the query.

    Examples: `unicl search runs/a photos/ "a red fruit" --out sheet.html`;
    `unicl search runs/a photos/ "beach.jpg + night - people"`

    Parameters
    ----------
    photos_and_query
        Folders or files, or one folder that `unicl embed` wrote; then the query.
    rerank
        Of a model that compares parts, how many of the nearest pictures are ranked by them; 0 is none.
    out
        Write a contact sheet: .html, .png or .jsonl.
    """
    from unicl.published import load
    from unicl.use.search import search as run
    from unicl.use.sheet import require_ending

    if len(photos_and_query) < 2:
        raise UserError('give a folder of pictures and a query, for example: unicl search runs/a photos/ "a red fruit"')
    if out is not None:
        require_ending(out)
    *photos, query = photos_and_query
    found = run(load(model), photos, query=query, top=top, rerank=rerank, batch=batch, progress=True)
    return shown(found, out)
