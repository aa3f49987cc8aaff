"""Small real data and small real models that several tests share."""

from dataclasses import replace

import numpy as np
from PIL import Image

from unicl.data.image import Frame
from unicl.data.words.masking import hidden_words
from unicl.data.words.phrases import parse
from unicl.data.words.tags import captions_of
from unicl.lookup import find
from unicl.prepare import hiding
from unicl.towers.text import TextSettings

COLOURS = {"red": (210, 40, 40), "green": (40, 190, 60), "blue": (50, 60, 210)}


def write_photos(folder, *, each=8, size=(20, 24), seed=0, findings=False):
    """A folder per colour with noisy pictures of it, and a table of captions; returns both paths.

    With ``findings``, the table says of each picture which colours are present.
    """
    rng = np.random.default_rng(seed)
    rows = ["file,title" + "".join(f",finding:{name}" for name in COLOURS if findings)]
    for name, colour in COLOURS.items():
        (folder / "photos" / name).mkdir(parents=True)
        for k in range(each):
            pixels = np.clip(np.array(colour) + rng.normal(0, 30, (*size, 3)), 0, 255).astype("uint8")
            path = folder / "photos" / name / f"{k}.png"
            Image.fromarray(pixels).save(path)
            known = "".join(f",{int(other == name)}" for other in COLOURS if findings)
            rows.append(f"photos/{name}/{k}.png,a {name} square number {k}{known}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(folder / "photos"), str(folder / "captions.csv")


def tiny(name, *, steps=6, batch=12, tower="test_vit", **fit):
    """A recipe of this library with towers of a few hundred thousand parameters."""
    recipe = find(name)()
    image = replace(recipe.image, name=tower, size=32, weights="random")
    text = recipe.text
    if image.parts is not None:
        image = replace(image, parts=replace(image.parts, stage=None, reduced=min(image.parts.reduced, 3)))
    if text is not None:
        parts = None if text.parts is None else replace(text.parts, layers=1)
        small = {"layers": 1, "dim": 32, "heads": 2, "vocab": 400, "context": 24}
        kept = {name: getattr(text, name) for name in ("pool", "head", "end", "locked")}
        # A package's model has its own size.
        kind = "bert" if text.name.startswith("package:") else text.name
        text = TextSettings(**small, **kept, name=kind, parts=parts)
    words = None if recipe.words is None else replace(recipe.words, vocab=400, context=24)
    image, width = replace(image, frame=Frame()), None if recipe.width is None else 32
    if image.pool == "stage":  # of an EfficientNet
        image, width = replace(image, pool="default", head="linear"), 32
    terms = tuple(replace(t, dims=16) if getattr(t, "dims", None) else t for t in recipe.terms)
    # Which parts are left out depends on the rows of a process, by design.
    terms = tuple(replace(t, part_share=1.0) if hasattr(t, "part_share") else t for t in terms)
    # What is dropped, too.
    terms = tuple(replace(t, width=32, dropout=0.0) if hasattr(t, "dropout") else t for t in terms)
    return replace(
        recipe,
        image=image,
        text=text,
        words=words,
        width=width,
        terms=terms,
        # So that the second view of the texts goes through the common checks too.
        data=replace(recipe.data, batch=batch, workers=1, text_views=2 if name == "medclip" else 1),
        # LAMB moves by shares of a weight, and a text must come far to meet pictures that stay where they are.
        optim=replace(recipe.optim, lr=1e-2 if recipe.width is None else 2e-3),
        fit=replace(recipe.fit, steps=steps, **fit),
        stages=tuple(replace(stage, steps=steps // len(recipe.stages)) for stage in recipe.stages),
    )


def hide_of(recipe, sources, tokenizer):
    """What hides words for a recipe, as a run gives it to its stream, without a run's folder."""
    if recipe.data.hidden is None:
        return hiding(recipe, tokenizer)
    captions = captions_of(sources)
    return hidden_words(captions, parse(list(captions)), recipe.data.hidden, tokenizer=tokenizer)
