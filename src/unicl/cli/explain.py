"""The verb that shows what matched: explain."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from unicl.cli.say import wrote
from unicl.errors import UserError


def explain(
    model: str,
    image: str,
    text: str,
    *,
    out: Path | None = None,
    label: str | None = None,
    view: Literal["instances", "classes"] = "instances",
    scale: Literal["joint", "word"] = "joint",
    font: Path | None = None,
) -> int:
    """Show which places of a picture speak for which words of a text.

    Models that compare parts (filip, wukong, gloria) show what they compare; all others by gradients of the score.

    Examples: `unicl explain runs/f photos/apple/1.png "a red apple on a table" --out match.html`;
    `unicl explain runs/f balloon.jpg "a photo of a {label}." --label balloon --out match.png`

    Parameters
    ----------
    image
        One picture.
    text
        What to look for; of a classifier, a class, or several with commas between.
    out
        Write a page to point at (.html), a sheet (.png) or the numbers (.json).
    label
        What the class index looks for: it takes the place of {label} in the text, or is among its words.
    view
        Compare as for search and retrieval (instances) or as for classes.
    scale
        Colours of one scale for all words, or of one for each.
    font
        A font file for the letters of a sheet; UNICL_FONT is read if it is not given.
    """
    from unicl.published import load
    from unicl.use.explain.run import explain as run
    from unicl.use.explain.write import require_ending, show, write
    from unicl.use.files import pictures

    if out is not None:
        require_ending(out)
    found = pictures([image])
    if len(found) > 1:
        raise UserError(f"explain takes one picture, and {image!r} has {len(found):,}; name one, such as {found[0].id}")
    loaded = load(model)
    named = f"{loaded.settings.recipe} ({model})"
    explanation = run(loaded, found[0].image, text, view=view, label=label, origin=named)
    explanation = replace(explanation, image=found[0].id)
    show(explanation, Console(highlight=False))
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if out is None:
        errors.print("to see it, write a page or a picture: --out match.html or --out match.png")
        return 0
    if said := write(explanation, out, scale=scale, font=font):
        errors.print(f"note: {said}")
    wrote(out)
    return 0
