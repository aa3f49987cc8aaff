"""The verb that writes captions: caption."""

from pathlib import Path

from rich.console import Console

from unicl.cli.say import needs, wrote
from unicl.errors import UserError


def caption(
    model: str,
    *photos: str,
    beams: int = 5,
    nucleus: float | None = None,
    seed: int = 0,
    most: int = 30,
    per_token: bool = False,
    batch: int = 32,
    data: list[str] | None = None,
    out: Path | None = None,
) -> int:
    """Write a caption for each picture, with a model that was trained to (virtex, caption_lm).

    Examples: `unicl caption runs/v photos/`; `unicl caption runs/v photos/ --nucleus 0.9 --out captions.csv`;
    `unicl caption runs/v --data captions.csv` for the pictures of a table, scored by what it says of them.

    Parameters
    ----------
    beams
        The likeliest caption that so many beginnings find; 1 takes the likeliest word each time.
    nucleus
        Draw each word instead, from the likeliest ones that have this share of the probability.
    seed
        Of these draws.
    most
        Tokens of a caption at most.
    per_token
        Compare beams by the mean over tokens, which favours longer captions.
    data
        What people wrote of the same pictures: adds BLEU-1 to 4 and CIDEr.
    out
        Write a .csv with the columns image, caption and score.
    """
    from unicl.published import load
    from unicl.use.caption import Manner, judge, references, show
    from unicl.use.caption import caption as run

    paths = photos or tuple(data or ())
    needs(paths, "unicl caption runs/v photos/")
    if out is not None and out.suffix.casefold() != ".csv":
        raise UserError(f"captions are written as a table, but {out.name!r} is none; give a name that ends in .csv")
    known = references(data) if data else ()
    manner = Manner(beams=beams, nucleus=nucleus, seed=seed, most=most, per_token=per_token)
    found = run(load(model), paths, manner=manner, batch=batch, progress=True)
    for item in found.skipped:
        Console(stderr=True).print(f"left out {item.id}: {item.reason}", markup=False)
    if out is not None:
        found.save(out)
        wrote(out)
    show(found, console=Console(), judged=judge(found, known) if known else None, rows=out is None)
    return 0
