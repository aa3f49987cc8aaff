"""All samples of all sources in one row order, and which rows show which image file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unicl.data.check.report import Ref
from unicl.data.sources import Source
from unicl.space import ImageSource, Sample


@dataclass(frozen=True, slots=True)
class Table:
    """The samples of ``sources``, one after the other; a row number means a place in this order."""

    sources: tuple[Source, ...]
    samples: tuple[Sample, ...]
    names: tuple[str, ...]

    def ref(self, row: int) -> Ref:
        """The row's source and id."""
        return Ref(self.names[row], self.samples[row].id)

    def classes(self) -> Iterator[tuple[int, tuple[str, str]]]:
        """``(row, (namespace, label))`` for every label of every row."""
        for row, sample in enumerate(self.samples):
            for label in sample.labels:
                yield row, (sample.namespace, label)

    def captions(self) -> Iterator[tuple[int, str]]:
        """``(row, caption)`` for every caption of every row."""
        for row, sample in enumerate(self.samples):
            for caption in sample.captions:
                yield row, caption


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """The distinct images of a table: ``rows[k]`` are the rows that show ``files[k]``."""

    files: tuple[ImageSource, ...]
    rows: tuple[tuple[int, ...], ...]

    @property
    def row_count(self) -> int:
        """How many rows have an image."""
        return sum(map(len, self.rows))


def table(sources: Sequence[Source]) -> Table:
    """Put the samples of all sources into one order."""
    samples = tuple(sample for source in sources for sample in source.samples)
    names = tuple(source.name for source in sources for _ in source.samples)
    return Table(tuple(sources), samples, names)


def image_column(samples: Sequence[Sample]) -> ImageColumn:
    """Equal paths, slices and bytes are one image; a sample with several stands in the rows of each."""
    rows: dict[ImageSource, list[int]] = {}
    for row, sample in enumerate(samples):
        for image in dict.fromkeys(sample.images):
            rows.setdefault(image, []).append(row)
    return ImageColumn(tuple(rows), tuple(map(tuple, rows.values())))


def evenly(count: int, *, limit: int | None) -> list[int]:
    """At most ``limit`` of ``count`` positions at even distances: a sample that needs no dice and meets every part."""
    if limit is None or count <= limit:
        return list(range(count))
    step = count / limit
    return [int((k + 0.5) * step) for k in range(limit)]
