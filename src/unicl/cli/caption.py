"""The verb that writes captions: caption."""

from collections.abc import Iterable
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
    repeats: bool = True,
    batch: int = 32,
    tokenizer: Path | None = None,
    data: list[str] | None = None,
    max_bad: int = 100,
    out: Path | None = None,
) -> int:
    """Write a caption for each picture, with a model that was trained to (virtex, caption_lm).

    Examples: `unicl caption runs/v photos/`; `unicl caption runs/v photos/ --nucleus 0.9 --out captions.csv`;
    `unicl caption runs/v --data captions.csv` for the pictures of a table, scored by what it says of them;
    `unicl caption virtex.pth photos/ --tokenizer coco_10k.model --no-repeats` for VirTex's own checkpoint.

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
    repeats
        Whether a token may stand right behind itself; VirTex's own search forbids it.
    tokenizer
        The SentencePiece model of a checkpoint of VirTex; one that fits and lies beside it is found by itself.
    data
        What people wrote of the same pictures: adds BLEU-1 to 4 and CIDEr-D. Their words are runs of letters and
        digits, not those of COCO's PTB tokenizer, so that published numbers differ a little.
    max_bad
        How many pictures that cannot be read are left out before the run ends.
    out
        Write a .csv with the columns image, caption and score; a run that was stopped goes on where it was.
    """
    from unicl.published import load
    from unicl.use.caption import Manner, judge, references, show
    from unicl.use.caption import caption as run

    paths = photos or tuple(data or ())
    needs(paths, "unicl caption runs/v photos/")
    _check(out, (*photos, *(data or ())))
    known = references(data) if data else ()
    manner = Manner(beams=beams, nucleus=nucleus, seed=seed, most=most, per_token=per_token, repeats=repeats)
    writer = load(model, tokenizer=tokenizer)
    found = run(writer, paths, manner=manner, batch=batch, max_bad=max_bad, out=out, progress=True)
    for item in found.skipped:
        Console(stderr=True).print(f"left out {item.id}: {item.reason}", markup=False)
    if out is not None:
        wrote(out)
    show(found, console=Console(), judged=judge(found, known) if known else None, rows=out is None)
    return 0


def _check(out: Path | None, sources: Iterable[str]) -> None:
    if out is None:
        return
    if out.suffix.casefold() != ".csv":
        raise UserError(f"captions are written as a table, but {out.name!r} is none; give a name that ends in .csv")
    if any(Path(source.partition("?")[0]).expanduser().resolve() == out.resolve() for source in sources):
        raise UserError(f"--out {str(out)!r} is a table that is read; give another name")
