"""`check`: look at all data once and say what training would meet."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from unicl.data.check.advice import findings, recipe
from unicl.data.check.copies import Seen, copies, image_counts
from unicl.data.check.floor import false_negatives
from unicl.data.check.images import Look, look_all
from unicl.data.check.known import known_findings
from unicl.data.check.labels import class_counts, classes, kinds
from unicl.data.check.memory import TOWERS, memory
from unicl.data.check.report import CheckReport, Images, Meeting, Ref, SourceFacts, Unreadable
from unicl.data.check.table import ImageColumn, Table, evenly, image_column, table
from unicl.data.check.texts import MEASURED, caption_counts, captions, three
from unicl.data.prompts import language_of
from unicl.data.sources import Source
from unicl.data.text import Tokenizer, load_tokenizer, train_tokenizer
from unicl.errors import UserError

BATCHES = (64, 256, 1024, 4096, 32_768)
LISTED = 100
POINTS = 400
SHORT = 16  # tokens of a class text
EXAMPLES = 12
TINY = 32
LONG = 3


def check(
    sources: Sequence[Source],
    *,
    batch_size: int = 256,
    context: int = 77,
    tokenizer: Tokenizer | None = None,
    max_images: int | None = None,
    workers: int = 0,
    progress: bool = False,
) -> CheckReport:
    """Everything worth knowing about the data before training.

    ``batch_size`` is the one that training would use; ``context`` the longest text in tokens, counted by ``tokenizer``
    (None: CLIP's, or for Chinese captions Chinese-CLIP's; one made of the captions where that is not installed).
    At most ``max_images`` images, evenly spread, are opened, by ``workers`` threads (0: one a core).

    Raises `UserError` if there is no sample.
    """
    if not any(source.samples for source in sources):
        names = ", ".join(source.name for source in sources) or "no source"
        raise UserError(f"there is nothing to check: {names} holds no samples; give a folder, a table or an archive")
    rows = table(sources)
    column = image_column(rows.samples)
    places = evenly(len(column.files), limit=max_images)
    opened = [column.files[k] for k in places]
    looks = look_all(opened, workers=workers or os.cpu_count() or 1, progress=progress)
    pictures = _Pictures(column, tuple(places), tuple(looks))
    report = _report(rows, pictures, batch_size=batch_size, context=context, tokenizer=tokenizer)
    return replace(report, findings=findings(report))


@dataclass(frozen=True, slots=True)
class _Pictures:
    """The image column and what was seen of it: ``looks[k]`` is of file ``places[k]``."""

    column: ImageColumn
    places: tuple[int, ...]
    looks: tuple[Look | str, ...]

    def seen(self) -> Seen:
        """Those that could be used."""
        good = [
            (self.column.rows[p], look)
            for p, look in zip(self.places, self.looks, strict=True)
            if not isinstance(look, str)
        ]
        return Seen(tuple(rows for rows, _ in good), tuple(look for _, look in good))

    def bad(self) -> dict[int, str]:
        """The rows whose image cannot be used, with the reason."""
        pairs = zip(self.places, self.looks, strict=True)
        return {row: look for place, look in pairs if isinstance(look, str) for row in self.column.rows[place]}


def _report(
    rows: Table, pictures: _Pictures, *, batch_size: int, context: int, tokenizer: Tokenizer | None
) -> CheckReport:
    seen, by_class, by_caption = pictures.seen(), class_counts(rows), caption_counts(rows)
    text = captions(rows, by_caption, context=context, tokenizer=tokenizer or _tokenizer(rows, context=context))
    kind, names = kinds(rows.samples), classes(rows, by_class, unusable=pictures.bad().keys())
    counts = {
        "class": list(by_class.values()),
        "caption": list(by_caption.values()),
        "image": image_counts(rows, pictures.column, seen=seen),
    }
    meetings = _meetings(counts, batch_size=batch_size)
    known = known_findings(rows.samples)
    name, reason = recipe(kind, names, captions=text, known=known, meetings=meetings, batch_size=batch_size)
    if pictures.looks and not seen.looks:
        name, reason = "", "no image can be read"
    tokens = min(context, text.length[2]) or SHORT
    return CheckReport(
        sources=tuple(map(_facts, rows.sources)),
        kinds=kind,
        classes=names,
        images=_images(rows, pictures, seen=seen),
        copies=copies(rows, pictures.column, seen=seen),
        captions=text,
        batch_size=batch_size,
        meetings=meetings,
        memory=tuple(memory(towers, batch_size=batch_size, text_tokens=tokens, context=context) for towers in TOWERS),
        recipe=name,
        reason=reason,
        findings=(),
        known=known,
    )


def _tokenizer(rows: Table, *, context: int) -> Tokenizer:
    """CLIP's if it is installed, else one made of these captions, as training does."""
    texts = [caption for _, caption in rows.captions()]
    some = [texts[k] for k in evenly(len(texts), limit=MEASURED)]
    try:
        return load_tokenizer("chinese" if language_of(some) == "zh" else "clip", context=context)
    except UserError:
        return train_tokenizer(some or ["a photo"], vocab_size=8192, context=context)


def _meetings(counts: Mapping[str, Sequence[int]], *, batch_size: int) -> tuple[Meeting, ...]:
    """Every key of the data at every batch size that the data can fill, and at the one asked for."""
    return tuple(
        Meeting(key=key, batch_size=size, numbers=false_negatives(sizes, batch_size=size))
        for key, sizes in counts.items()
        if sizes
        for size in sorted({batch_size, *BATCHES})
        if size <= sum(sizes) or size == batch_size
    )


def _images(rows: Table, pictures: _Pictures, *, seen: Seen) -> Images:
    bad = [(place, look) for place, look in zip(pictures.places, pictures.looks, strict=True) if isinstance(look, str)]
    sides = np.array([(look.width, look.height) for look in seen.looks], dtype=np.int64).reshape(-1, 2)
    tiny, plain = sides.min(axis=1) < TINY, np.array([look.mark.plain for look in seen.looks], dtype=bool)
    long = sides.max(axis=1) > LONG * sides.min(axis=1)
    first = pictures.column.rows
    return Images(
        rows=pictures.column.row_count,
        distinct=len(pictures.column.files),
        looked=len(pictures.looks),
        unreadable=len(bad),
        reasons=tuple(Counter(look for _, look in bad).most_common(EXAMPLES)),
        unreadable_list=tuple(Unreadable(ref=rows.ref(first[p][0]), reason=look) for p, look in bad[:LISTED]),
        width=three(sides[:, 0]),
        height=three(sides[:, 1]),
        sides=tuple((int(w), int(h)) for w, h in sides[_points(sides)]),
        tiny=int(tiny.sum()),
        long=int(long.sum()),
        plain=int(plain.sum()),
        tiny_examples=_some(rows, seen, tiny),
        long_examples=_some(rows, seen, long),
        plain_examples=_some(rows, seen, plain),
    )


def _points(sides: npt.NDArray[np.int64]) -> list[int]:
    """Some images evenly spread, and the extremes of either side, which a spread would miss."""
    ends = [*sides.argmin(axis=0), *sides.argmax(axis=0)] if len(sides) else []
    return sorted({*evenly(len(sides), limit=POINTS), *map(int, ends)})


def _some(rows: Table, seen: Seen, mask: npt.NDArray[np.bool_]) -> tuple[Ref, ...]:
    return tuple(rows.ref(seen.rows[k][0]) for k in np.flatnonzero(mask)[:EXAMPLES])


def _facts(source: Source) -> SourceFacts:
    return SourceFacts(
        name=source.name,
        path=str(source.path),
        format=source.format,
        samples=len(source.samples),
        weight=source.weight,
        columns=dict(source.guessed),
        notes=source.notes,
    )
