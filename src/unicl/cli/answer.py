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
) -> int:
    """Write the vectors of pictures to a folder; goes on where it was stopped.

    Example: `unicl embed runs/a photos/ --out vectors/`

    Parameters
    ----------
    photos
        Folders, files, tars or tables.
    view
        What the vectors are for: instances (search, retrieval) or classes.
    """
    from unicl.published import load
    from unicl.use.embed import embed as run

    needs(photos, "unicl embed runs/a photos/ --out vectors/")
    vectors = run(load(model), photos, out=out, batch=batch, view=view, dtype=dtype, progress=True)
    for item in vectors.skipped():
        Console(stderr=True).print(f"left out {item.id}: {item.reason}", markup=False)
    print(f"{vectors.manifest.count} vectors of {vectors.manifest.width} in {out}, {vectors.manifest.skipped} left out")
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
    from unicl.data.prompts import templates
    from unicl.published import load
    from unicl.use.classify import classify as run
    from unicl.use.classify import parse_names
    from unicl.use.sheet import require_ending

    needs(photos, "unicl classify runs/a photos/ --names a,b,c")
    if out is not None:
        require_ending(out)
    wanted = parse_names(names) if names else ()
    sets = templates(prompts) if prompts else ()
    found = run(load(model), photos, names=wanted, templates=sets, top=top, batch=batch, progress=True)
    return shown(found, out)


def search(
    model: str,
    *photos_and_query: str,
    top: int = 12,
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
    found = run(load(model), photos, query=query, top=top, batch=batch, progress=True)
    return shown(found, out)
