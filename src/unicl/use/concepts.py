"""The concepts of data: which nouns its captions name, how often and on how many images (UniCL, Table 1)."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import regex

from unicl.data.check.table import table
from unicl.data.keys import normalise
from unicl.data.sources import Source
from unicl.data.words.phrases import parse
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.space import ImageSource

LEAST: Final = 6
"""UniCL counts nouns that are seen more than five times."""
NO_IMAGE: Final = -1
_WORD: Final = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_LETTER: Final = regex.compile(r"\p{L}")

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A noun of the captions, or a class: how often it is named, and on how many ``images``."""

    name: str
    kind: Literal["noun", "class"]
    seen: int
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One row of the table: a source, or all of them together.

    ``texts`` are the captions of all rows; ``bare`` are captions that name no concept, and ``unread`` those in a
    language without a pipeline. ``phrases`` is how many noun phrases are seen often enough, ``vocabulary`` how many
    words captions and class names have. ``concepts`` begin with the one on most images.
    """

    name: str
    images: int
    texts: int
    vocabulary: int
    phrases: int
    bare: int
    unread: int
    concepts: tuple[Concept, ...]

    @property
    def images_per_concept(self) -> float:
        """Images divided by concepts, as in UniCL's Table 1; 0 without a concept."""
        return self.images / len(self.concepts) if self.concepts else 0.0


def count_concepts(
    sources: Sequence[Source],
    *,
    least: int = LEAST,
    cache: Path | None = None,
    workers: int = 1,
    progress: bool = False,
) -> tuple[Counted, ...]:
    """A row for each source, and for several one of all together.

    Concepts are the lemmas of nouns and names that captions show at least ``least`` times, and every class, as UniCL
    counts them (Table 1); a noun and a class of one name are one. ``cache`` and ``workers`` are those of
    `unicl.data.words.phrases.parse`, which is where the time goes.

    Raises `UserError` if a pipeline is missing, or nothing has a caption or a label.
    """
    if least < 1:
        raise UserError(f"least is {least}; give how often a noun has to be seen, 1 or more")
    rows = table(sources)
    names: dict[str, int] = {}
    pictures: dict[ImageSource, int] = {}
    texts = sum(len({caption for sample in s.samples for caption in sample.captions}) for s in sources)
    if not texts and not any(sample.labels for sample in rows.samples):
        known = ", ".join(source.name for source in sources)
        raise UserError(
            f"{known}: no captions and no labels, so no concepts; name the column of texts: 'PATH?text=COLUMN'"
        )
    with bar("reading captions", total=texts, shown=progress) as moved:
        tallies = [_tally(source, names, pictures, cache=cache, workers=workers, moved=moved) for source in sources]
    if len(sources) > 1:
        tallies.append(_joined(tallies))
    spelled = tuple(names)
    return tuple(_counted(tally, spelled, least=least) for tally in tallies)


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What one source names: triples (text, concept, times), and pairs (text, image) of the rows that show a text.

    A label is a text of its own kind, of which ``labels`` has the numbers.
    """

    name: str
    texts: int = 0
    images: set[int] = field(default_factory=set)
    named: "array[int]" = field(default_factory=lambda: array("q"))
    shown: "array[int]" = field(default_factory=lambda: array("q"))
    labels: list[int] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    phrases: Counter[str] = field(default_factory=Counter)
    vocabulary: set[str] = field(default_factory=set)

    def add(self, named: Counter[int], rows: Sequence[int]) -> int:
        """A text with the concepts that it names and the images of its rows; gives its number."""
        number, self.texts = self.texts, self.texts + 1
        for concept, times in named.items():
            self.named.extend((number, concept, times))
        for image in rows:
            self.shown.extend((number, image))
        return number


def _tally(
    source: Source,
    names: dict[str, int],
    pictures: dict[ImageSource, int],
    *,
    cache: Path | None,
    workers: int,
    moved: Callable[[int], None],
) -> _Tally:
    """``names`` and ``pictures`` number concepts and images for all sources."""
    tally = _Tally(name=source.name)
    captions, labels = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for sample in source.samples:
        image = NO_IMAGE if sample.image is None else pictures.setdefault(sample.image, len(pictures))
        tally.images.add(image)
        for caption in sample.captions:
            captions[caption].append(image)
        for label in sample.labels:
            labels[label].append(image)
    tally.images.discard(NO_IMAGE)
    found = parse(list(captions), cache=cache, workers=workers, moved=moved)
    for parsed, rows in zip(found, captions.values(), strict=True):
        lemmas = [] if parsed is None else [normalise(lemma) for lemma in parsed.nouns()]
        number = tally.add(Counter(names.setdefault(lemma, len(names)) for lemma in lemmas), rows)
        if parsed is None:
            tally.unread.append(number)
            continue
        tally.vocabulary.update(word.text.casefold() for word in parsed.words if _LETTER.search(word.text))
        for phrase in parsed.phrases:
            tally.phrases[phrase] += len(rows)
    for label, rows in labels.items():
        name = normalise(label)
        tally.labels.append(tally.add(Counter([names.setdefault(name, len(names))]), rows))
        tally.vocabulary.update(_WORD.findall(name))
    return tally


def _joined(tallies: Sequence[_Tally]) -> _Tally:
    whole = _Tally(name="together")
    for tally in tallies:
        for own, values, width in ((whole.named, tally.named, 3), (whole.shown, tally.shown, 2)):
            moved = _table(values, width)
            moved[:, 0] += whole.texts
            own.frombytes(moved.tobytes())
        whole.labels += [whole.texts + number for number in tally.labels]
        whole.unread += [whole.texts + number for number in tally.unread]
        whole.texts += tally.texts
        whole.images |= tally.images
        whole.phrases += tally.phrases
        whole.vocabulary |= tally.vocabulary
    return whole


def _counted(tally: _Tally, names: Sequence[str], *, least: int) -> Counted:
    named, shown = _table(tally.named, 3), _table(tally.shown, 2)
    text_N, concept_N, times_N = named.T
    rows_T = np.bincount(shown[:, 0], minlength=tally.texts)
    label_T, unread_T = _mask(tally.labels, tally.texts), _mask(tally.unread, tally.texts)
    seen_C = np.bincount(concept_N, weights=times_N * rows_T[text_N], minlength=len(names)).astype(np.int64)
    class_C = _mask(concept_N[label_T[text_N]], len(names))
    kept_C = class_C | (seen_C >= least)
    images_C = _images(text_N, concept_N, shown, rows_T, concepts=len(names))
    has_T = _mask(text_N[kept_C[concept_N]], tally.texts)
    order = sorted(np.flatnonzero(kept_C).tolist(), key=lambda c: (-images_C[c], -seen_C[c], names[c]))
    return Counted(
        name=tally.name,
        images=len(tally.images),
        texts=int(rows_T[~label_T].sum()),
        vocabulary=len(tally.vocabulary),
        phrases=sum(count >= least for count in tally.phrases.values()),
        bare=int(rows_T[~label_T & ~has_T & ~unread_T].sum()),
        unread=int(rows_T[unread_T].sum()),
        concepts=tuple(
            Concept(name=names[c], kind="class" if class_C[c] else "noun", seen=int(seen_C[c]), images=int(images_C[c]))
            for c in order
        ),
    )


def _images(text_N: Ints, concept_N: Ints, shown: Ints, rows_T: Ints, *, concepts: int) -> Ints:
    """``(C,)``: on how many different images each concept is named."""
    image_R = shown[np.argsort(shown[:, 0], kind="stable"), 1]
    first_T = np.cumsum(rows_T) - rows_T
    lengths = rows_T[text_N]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    image_M = image_R[np.repeat(first_T[text_N], lengths) + within]
    most = int(image_M.max(initial=0)) + 1
    pairs_M = (np.repeat(concept_N, lengths) * most + image_M)[image_M != NO_IMAGE]
    return np.bincount(np.unique(pairs_M) // most, minlength=concepts)


def _table(values: "array[int]", width: int) -> Ints:
    return np.array(values, dtype=np.int64).reshape(-1, width)


def _mask(places: "Sequence[int] | Ints", size: int) -> Bools:
    mask = np.zeros(size, dtype=np.bool_)
    mask[np.asarray(places, dtype=np.int64)] = True
    return mask
