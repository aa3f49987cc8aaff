"""Captions for pictures, written by a model that predicts them."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from unicl.data.keys import stamp
from unicl.data.quarantine import Quarantine
from unicl.data.sources import load_all
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.evaluate.pictures import distinct_images
from unicl.evaluate.wording import require_scorers, wording_scores
from unicl.model import TwoTowers, quiet
from unicl.objective.likelihood import writer
from unicl.objective.predict import Caption
from unicl.space import ImageSource, Sample
from unicl.towers.kept import digest
from unicl.train.record import replace_text
from unicl.use.decode import Decoded, decoded
from unicl.use.files import Picture, pictures
from unicl.use.generate import Written, beam_search, draws_for, nucleus
from unicl.use.spell import spelled
from unicl.use.unfinished import Line, unfinished
from unicl.use.vectors import Item, fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How captions are written: the likeliest that ``beams`` find, or drawn from a ``nucleus`` by the ``seed``.

    ``most``: tokens of a caption at most, its end mark included. ``per_token``: beams are compared by the mean of log p
    over tokens, which favours longer captions, and not by the sum. ``repeats``: whether a token may stand right behind
    itself, as in "very very" or 宝宝; VirTex's code forbids it.
    """

    beams: int = 5
    nucleus: float | None = None
    seed: int = 0
    most: int = 30
    per_token: bool = False
    repeats: bool = True


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
    max_bad: int = 100,
    out: Path | None = None,
    progress: bool = False,
) -> Captions:
    """A caption for each picture; those that cannot be read, up to ``max_bad``, are set aside.

    With ``out``, a .csv, the table is there when all is done, or not at all. Until then every batch is safe in
    ``NAME.unfinished.jsonl``, from which the same call goes on; what cannot be read is in ``NAME.quarantine.jsonl``.
    Raises `UserError` for a model that writes no captions, a manner that makes no sense, too many pictures that cannot
    be read, or none that can.
    """
    term = _writer(model)
    _check(manner, batch=batch)
    listing = pictures(paths)
    file, listed = (None, None) if out is None else (_beside(out, "unfinished"), _beside(out, "quarantine"))
    made_by = {} if file is None else _made_by(model, manner, batch=batch)
    with unfinished(file, made_by=made_by) as kept:
        new = _not_known(listing, kept.known, batch=batch)
        asked = {picture.id for picture in listing} - {picture.id for picture in new}
        found = {id: line for id, line in kept.known.items() if id in asked}
        if progress and found:
            _say(f"going on: {len(found):,} of {len(listing):,} pictures are done")
        quarantine = _quarantine(listed, limit=max_bad)
        _note(found.values(), quarantine)
        with bar("captioning pictures", total=len(new), shown=progress and bool(new)) as advance:
            for lines in _lines(model, term, new, manner=manner, batch=batch):
                kept.add(lines)
                found |= {line["id"]: line for line in lines}
                advance(len(lines))
                _note(lines, quarantine)
        captions = _gathered(listing, found)
        if out is not None and captions.rows:
            captions.save(out)
        kept.forget()
    if not captions.rows:
        first = "; ".join(f"{item.id}: {item.reason}" for item in captions.skipped[:3])
        raise UserError(f"none of the {len(listing)} pictures can be read ({first})")
    return captions


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
            f"this model, of the recipe {model.settings.recipe!r}, has no term that writes captions; train one that "
            "does: unicl train --recipe virtex --data captions.csv --out runs/v; or give a checkpoint of VirTex with "
            "the SentencePiece model that it learned with: unicl caption virtex.pth photos/ --tokenizer coco_10k.model"
        )
    return found


def _check(manner: Manner, *, batch: int) -> None:
    if min(manner.beams, manner.most, batch) < 1:
        raise UserError(f"beams={manner.beams}, most={manner.most} and batch={batch}: each must be at least 1")
    if manner.nucleus is not None and not 0 < manner.nucleus <= 1:
        raise UserError(
            f"the nucleus is {manner.nucleus:g}; give the share of the probability to draw from, such as 0.9"
        )


def _beside(out: Path, what: str) -> Path:
    return out.with_suffix(f".{what}.jsonl")


def _made_by(model: TwoTowers, manner: Manner, *, batch: int) -> dict[str, object]:
    """What decides captions; a batch is among it, since sums of other batches differ in their last digits."""
    assert model.tokenizer is not None
    made = digest([fingerprint(model), model.settings.terms, model.tokenizer.inner.to_str()], {})
    return {"format": 1, "model": made, **asdict(manner), "batch": batch}


def _not_known(listing: Sequence[Picture], known: Mapping[str, Line], *, batch: int) -> list[Picture]:
    """The batches of which a picture is new or changed, whole: each comes with the others that it would come with."""
    batches = (listing[start : start + batch] for start in range(0, len(listing), batch))
    return [each for some in batches if not all(_is_known(picture, known) for picture in some) for each in some]


def _is_known(picture: Picture, known: Mapping[str, Line]) -> bool:
    return picture.id in known and known[picture.id]["stamp"] == stamp(picture.image)


def _quarantine(path: Path | None, *, limit: int) -> Quarantine:
    """A new list; what is still bad is noted again."""
    if path is not None:
        path.unlink(missing_ok=True)
    return Quarantine(limit=limit, path=path)


def _note(lines: Iterable[Line], quarantine: Quarantine) -> None:
    for line in lines:
        if "reason" in line:
            quarantine.add(line["id"], reason=line["reason"])


def _say(text: str) -> None:
    Console(stderr=True, highlight=False, markup=False).print(text)


def _lines(
    model: TwoTowers, term: Caption, listing: Sequence[Picture], *, manner: Manner, batch: int
) -> Iterator[list[Line]]:
    """What is found of each batch: captions, and why a picture could not be read."""
    image = model.settings.image
    for got in decoded(listing, size=image.size, batch=batch, frame=image.frame):
        bad: list[Line] = [{"id": item.id, "stamp": item.stamp, "reason": item.reason} for item in got.skipped]
        yield [*(_captioned(model, term, got, manner=manner) if got.items else []), *bad]


def _captioned(model: TwoTowers, term: Caption, got: Decoded, *, manner: Manner) -> list[Line]:
    with quiet(model):
        written = _written(model, term, got.pixels, manner=manner, names=[item.id for item in got.items])
    assert model.tokenizer is not None
    said = spelled(model.tokenizer, [each.tokens for each in written])
    return [
        {"id": item.id, "stamp": item.stamp, "caption": text, "score": each.score}
        for item, text, each in zip(got.items, said, written, strict=True)
    ]


def _gathered(listing: Sequence[Picture], found: Mapping[str, Line]) -> Captions:
    """What was found of all pictures, in their order."""
    rows, skipped = [], []
    for picture in listing:
        line = found[picture.id]
        if "reason" in line:
            skipped.append(Item(id=picture.id, image=picture.image, stamp=line["stamp"], reason=line["reason"]))
        else:
            row = Captioned(id=picture.id, image=picture.image, caption=line["caption"], score=line["score"])
            rows.append(row)
    return Captions(rows=tuple(rows), skipped=tuple(skipped))


def _written(model: TwoTowers, term: Caption, pixels: Tensor, *, manner: Manner, names: Sequence[str]) -> list[Written]:
    places = model.image(pixels.to(model.device)).parts
    assert places is not None
    decoder, words = term.decoder, term.words
    most = min(manner.most, decoder.context)
    places = replace(places, values=places.values.to(torch.promote_types(places.values.dtype, torch.float32)))
    if manner.nucleus is not None:
        draws = draws_for(names, seed=manner.seed, most=most)
        return nucleus(decoder, places, words=words, draws=draws, share=manner.nucleus, repeats=manner.repeats)
    return beam_search(
        decoder,
        places,
        words=words,
        beams=manner.beams,
        most=most,
        normalise=manner.per_token,
        repeats=manner.repeats,
    )


def _place(image: ImageSource | None) -> object:
    return image.resolve() if isinstance(image, Path) else image


def _file_name(image: ImageSource | None) -> str:
    return image.name if isinstance(image, Path) else ""


def _file_names(samples: Sequence[Sample]) -> dict[str, tuple[str, ...]]:
    """Captions by the name of a file, where no other file is called so."""
    counts = Counter(_file_name(sample.image) for sample in samples)
    return {name: s.captions for s in samples if (name := _file_name(s.image)) and counts[name] == 1}
