"""Captions for pictures, written by a model that predicts them."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from unicl.data.sources import load_all
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.pictures import distinct_images
from unicl.evaluate.wording import require_scorers, wording_scores
from unicl.model import TwoTowers, quiet
from unicl.objective.likelihood import writer
from unicl.objective.predict import Caption
from unicl.space import ImageSource, Sample
from unicl.train.record import replace_text
from unicl.use.decode import Decoded, decoded
from unicl.use.files import pictures
from unicl.use.generate import Written, beam_search, draws_for, nucleus
from unicl.use.spell import spelled
from unicl.use.vectors import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How captions are written: the likeliest that ``beams`` find, or drawn from a ``nucleus`` by the ``seed``.

    ``most``: tokens of a caption at most, its end mark included. ``per_token``: beams are compared by the mean of log p
    over tokens, which favours longer captions, and not by the sum.
    """

    beams: int = 5
    nucleus: float | None = None
    seed: int = 0
    most: int = 30
    per_token: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """One picture and its caption; ``score`` is the caption's log-likelihood."""

    id: str
    image: ImageSource | None
    caption: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """The captions of all pictures that could be read."""

    rows: tuple[Captioned, ...]
    skipped: tuple[Item, ...]

    def table(self) -> str:
        """All of it as CSV with the columns image, caption and score."""
        out = io.StringIO(newline="")
        writes = csv.writer(out, lineterminator="\n")
        writes.writerow(("image", "caption", "score"))
        writes.writerows((row.id, row.caption, f"{row.score:.4f}") for row in self.rows)
        return out.getvalue()

    def save(self, path: Path) -> None:
        """Write the table; raises `UserError` if it cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, self.table())
        except OSError as error:
            raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def caption(
    model: TwoTowers,
    paths: Sequence[str | Path],
    *,
    manner: Manner = Manner(),
    batch: int = 32,
    progress: bool = False,
) -> Captions:
    """A caption for each picture; one that cannot be read is set aside.

    Raises `UserError` for a model that writes no captions, a manner that makes no sense, or no picture to be read.
    """
    term = _writer(model)
    _check(manner, batch=batch)
    listing, image = pictures(paths), model.settings.image
    rows: list[Captioned] = []
    skipped: list[Item] = []
    with bar("captioning pictures", total=len(listing), shown=progress) as advance:
        for got in decoded(listing, size=image.size, batch=batch, frame=image.frame):
            if got.items:
                rows += _captioned(model, term, got, manner=manner)
            skipped += got.skipped
            advance(len(got.items) + len(got.skipped))
    if not rows:
        first = "; ".join(f"{item.id}: {item.reason}" for item in skipped[:3])
        raise UserError(f"none of the {len(skipped)} pictures can be read ({first})")
    return Captions(rows=tuple(rows), skipped=tuple(skipped))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """How captions compare with what people wrote: BLEU and CIDEr by name, over ``pictures`` that have references."""

    scores: dict[str, float]
    pictures: int


def references(data: Sequence[str]) -> tuple[Sample, ...]:
    """The pictures of data sources that have captions, each once, with all of them.

    Raises `UserError` if there is none, or nothing to score captions with, before any is written.
    """
    require_scorers()
    samples = tuple(sample for sample in distinct_images(load_all(data)) if sample.captions)
    if not samples:
        raise UserError(f"{', '.join(data)} has no picture with a caption; name its column with 'PATH?text=COLUMN'")
    return samples


def judge(captions: Captions, samples: Sequence[Sample]) -> Judged:
    """Captions against those of `references`; pictures are found there by their places or, if none is, by file names.

    Raises `UserError` if no picture is among them.
    """
    known = {_place(sample.image): sample.captions for sample in samples}
    found = [known.get(_place(row.image), ()) for row in captions.rows]
    if not any(found):
        names = _file_names(samples)
        found = [names.get(_file_name(row.image), ()) for row in captions.rows]
    asked = [(row.caption, texts) for row, texts in zip(captions.rows, found, strict=True) if texts]
    if not asked:
        raise UserError(
            f"none of the {len(captions.rows)} pictures is among the {len(samples)} that people captioned; give "
            "a table that has these pictures, by the same paths or file names"
        )
    scores = wording_scores([said for said, _ in asked], [texts for _, texts in asked])
    return Judged(scores=scores, pictures=len(asked))


def show(captions: Captions, *, console: Console, judged: Judged | None = None, rows: bool = True) -> None:
    """Print the captions as a table, what was not read, and how they compare with what people wrote."""
    if rows:
        table = Table(box=None, pad_edge=False)
        table.add_column("image", overflow="fold")
        table.add_column("caption", overflow="fold")
        table.add_column("score", justify="right", style="dim")
        for row in captions.rows:
            table.add_row(Text(row.id), Text(row.caption, style="bold"), f"{row.score:.2f}")
        console.print(table)
    bad = len(captions.skipped)
    left_out = f"; {bad:,} cannot be read" if bad else ""
    console.print(Text(f"captions of {len(captions.rows):,} pictures{left_out}", style="dim"))
    if judged is not None:
        said = ", ".join(f"{name} {value:.3f}" for name, value in judged.scores.items())
        console.print(Text(f"{said}, over {judged.pictures:,} pictures that people captioned"))


def _writer(model: TwoTowers) -> Caption:
    found = writer(model.objective.terms.values())
    if found is None or model.tokenizer is None:
        raise UserError(
            f"this model was trained with {model.settings.recipe!r}, which writes no captions; train one that does: "
            "unicl train --recipe virtex --data captions.csv --out runs/v"
        )
    return found


def _check(manner: Manner, *, batch: int) -> None:
    if min(manner.beams, manner.most, batch) < 1:
        raise UserError(f"beams={manner.beams}, most={manner.most} and batch={batch}: each must be at least 1")
    if manner.nucleus is not None and not 0 < manner.nucleus <= 1:
        raise UserError(
            f"the nucleus is {manner.nucleus:g}; give the share of the probability to draw from, such as 0.9"
        )


def _captioned(model: TwoTowers, term: Caption, got: Decoded, *, manner: Manner) -> list[Captioned]:
    with quiet(model):
        written = _written(model, term, got.pixels, manner=manner, names=[item.id for item in got.items])
    assert model.tokenizer is not None
    said = spelled(model.tokenizer, [each.tokens for each in written])
    return [
        Captioned(id=item.id, image=item.image, caption=text, score=each.score)
        for item, text, each in zip(got.items, said, written, strict=True)
    ]


def _written(model: TwoTowers, term: Caption, pixels: Tensor, *, manner: Manner, names: Sequence[str]) -> list[Written]:
    places = model.image(pixels.to(model.device)).parts
    assert places is not None
    decoder, words = term.decoder, term.words
    most = min(manner.most, decoder.context)
    places = replace(places, values=places.values.to(torch.promote_types(places.values.dtype, torch.float32)))
    if manner.nucleus is not None:
        draws = draws_for(names, seed=manner.seed, most=most)
        return nucleus(decoder, places, words=words, draws=draws, share=manner.nucleus)
    return beam_search(decoder, places, words=words, beams=manner.beams, most=most, normalise=manner.per_token)


def _place(image: ImageSource | None) -> object:
    return image.resolve() if isinstance(image, Path) else image


def _file_name(image: ImageSource | None) -> str:
    return image.name if isinstance(image, Path) else ""


def _file_names(samples: Sequence[Sample]) -> dict[str, tuple[str, ...]]:
    """Captions by the name of a file, where no other file is called so."""
    counts = Counter(_file_name(sample.image) for sample in samples)
    return {name: s.captions for s in samples if (name := _file_name(s.image)) and counts[name] == 1}
