"""Pictures that occur more than once: the same file, equal bytes, equal pixels, or nearly so."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unicl.data.check.duplicates import REACH, groups, near_pairs, same_value
from unicl.data.check.images import Look
from unicl.data.check.report import Copies, CopyFacts, CopyGroup
from unicl.data.check.table import ImageColumn, Table
from unicl.data.keys import normalise

SHOWN = 16
MEMBERS = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """The images that could be used: ``rows[k]`` show the image of ``looks[k]``."""

    rows: tuple[tuple[int, ...], ...]
    looks: tuple[Look, ...]

    def same_pixels(self) -> list[list[int]]:
        """Sets of two or more images with equal pixels."""
        return same_value(np.array([look.pixels for look in self.looks], dtype="S16"))


def copies(table: Table, column: ImageColumn, *, seen: Seen) -> Copies:
    """All four kinds of copies among the images that were looked at."""
    same_bytes = same_value(np.array([look.content for look in seen.looks], dtype="S16"))
    same_pixels = seen.same_pixels()
    resaved = [group for group in same_pixels if len({seen.looks[k].content for k in group}) > 1]
    near, exact_to = _near(seen, same_pixels)
    return Copies(
        rows=_facts(table, sorted((rows for rows in column.rows if len(rows) > 1), key=len, reverse=True)),
        files=_facts(table, [_rows(seen, group) for group in same_bytes]),
        pixels=_facts(table, [_rows(seen, group) for group in resaved]),
        near=_facts(table, [_rows(seen, group) for group in near]),
        near_exact_to=exact_to,
    )


def image_counts(table: Table, column: ImageColumn, *, seen: Seen) -> list[int]:
    """How many captioned rows show each picture: files with equal pixels are one picture."""
    number = {rows[0]: sum(bool(table.samples[row].captions) for row in rows) for rows in column.rows}
    for group in seen.same_pixels():
        # Two images of a study stand in one row, which counts once.
        first, *others = dict.fromkeys(seen.rows[k][0] for k in group)
        number[first] = number.get(first, 0) + sum(number.pop(other, 0) for other in others)
    return [count for count in number.values() if count]


def _near(seen: Seen, same_pixels: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
    """Sets of images that look alike; each set of equal pixels takes part as one, and plain images not at all."""
    twins = {group[0]: list(group) for group in same_pixels}
    skipped = {k for group in same_pixels for k in group[1:]}
    kept = [k for k, look in enumerate(seen.looks) if k not in skipped and not look.mark.plain]
    if len(kept) < 2:
        return [], REACH
    hashes = np.array([seen.looks[k].mark.hash for k in kept], dtype=np.uint64)
    grids = np.frombuffer(b"".join(seen.looks[k].mark.grid for k in kept), dtype=np.uint8).reshape(len(kept), -1)
    found = near_pairs(hashes, grids)
    alike = [[kept[k] for k in group] for group in groups(found.pairs, size=len(kept))]
    return [[twin for k in group for twin in twins.get(k, [k])] for group in alike], found.exact_to


def _rows(seen: Seen, group: Sequence[int]) -> list[int]:
    return [row for k in group for row in seen.rows[k]]


def _facts(table: Table, sets: Sequence[Sequence[int]]) -> CopyFacts:
    """Count the sets of rows, and keep the largest and those with differing labels to show."""
    other_labels = [rows for rows in sets if _labels_differ(table, rows)]
    return CopyFacts(
        groups=len(sets),
        images=sum(map(len, sets)),
        across_sources=sum(len({table.names[row] for row in rows}) > 1 for rows in sets),
        labels_differ=len(other_labels),
        captions_differ=sum(_captions_differ(table, rows) for rows in sets),
        examples=tuple(_group(table, rows) for rows in sets[:SHOWN]),
        label_examples=tuple(_group(table, rows) for rows in other_labels[:SHOWN]),
    )


def _labels_differ(table: Table, rows: Sequence[int]) -> bool:
    """Within one namespace, one sample of the set is of another class than another."""
    said: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for sample in (table.samples[row] for row in rows):
        if sample.labels:
            said[sample.namespace].add(tuple(sorted(sample.labels)))
    return any(len(labels) > 1 for labels in said.values())


def _captions_differ(table: Table, rows: Sequence[int]) -> bool:
    said = {tuple(sorted(map(normalise, captions))) for row in rows if (captions := table.samples[row].captions)}
    return len(said) > 1


def _group(table: Table, rows: Sequence[int]) -> CopyGroup:
    """The set's first members; when labels differ, members that show it come first."""
    said = Counter(label for row in rows for label in table.samples[row].labels)
    first_of_each = {table.samples[row].labels: row for row in reversed(rows)}
    order = list(dict.fromkeys([*sorted(first_of_each.values()), *rows]))
    texts = dict.fromkeys(caption for row in order for caption in table.samples[row].captions)
    return CopyGroup(
        size=len(rows),
        refs=tuple(table.ref(row) for row in order[:MEMBERS]),
        labels=tuple(label for label, _ in said.most_common(MEMBERS)),
        captions=tuple(list(texts)[:MEMBERS]),
    )
