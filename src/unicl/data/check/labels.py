"""What kinds of samples there are, and the classes among them."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from unicl.data.check.report import Classes, ClassSize, Kinds
from unicl.data.check.table import Table, evenly
from unicl.data.keys import normalise
from unicl.space import Sample

SHOWN = 24
FEWEST = 12
EXAMPLES = 6
POINTS = 240

Class = tuple[str, str]  # namespace, label


def kinds(samples: Iterable[Sample]) -> Kinds:
    """Count the samples by what they have."""
    has: Counter[tuple[bool, bool, bool]] = Counter()
    several_captions = several_labels = 0
    for sample in samples:
        has[sample.image is not None, bool(sample.labels), bool(sample.captions)] += 1
        several_captions += len(sample.captions) > 1
        several_labels += len(sample.labels) > 1
    return Kinds(
        samples=has.total(),
        image_label=has[True, True, False],
        image_caption=has[True, False, True],
        image_label_caption=has[True, True, True],
        image_only=has[True, False, False],
        text_only=has[False, False, True] + has[False, True, True],
        label_only=has[False, True, False],
        nothing=has[False, False, False],
        several_captions=several_captions,
        several_labels=several_labels,
    )


def class_counts(table: Table) -> Counter[Class]:
    """How many samples carry each class."""
    return Counter(name for _, name in table.classes())


def classes(table: Table, counts: Counter[Class], *, unusable: Collection[int]) -> Classes:
    """The classes by size; rows in ``unusable`` give no example picture."""
    order = sorted(counts, key=lambda name: (-counts[name], name[1], name[0]))
    most, fewest = order[:SHOWN], order[SHOWN:][-FEWEST:]
    examples = _examples(table, {*most, *fewest}, counts=counts, unusable=unusable)
    apart, spelling = _apart(counts), _spelling(counts)
    sizes = np.array([counts[name] for name in order])
    return Classes(
        count=len(counts),
        samples=sum(1 for sample in table.samples if sample.labels),
        median=float(np.median(sizes)) if len(sizes) else 0.0,
        singletons=int((sizes == 1).sum()),
        largest=_sizes(table, most, counts=counts, examples=examples),
        smallest=_sizes(table, fewest, counts=counts, examples=examples),
        ranked=tuple(int(size) for size in sizes[_ranks(len(sizes))]),
        apart_count=len(apart),
        apart=tuple(apart[:SHOWN]),
        spelling_count=len(spelling),
        spelling=tuple(spelling[:SHOWN]),
    )


def _ranks(count: int) -> list[int]:
    """At most `POINTS` ranks at even distances, both ends among them."""
    return np.linspace(0, count - 1, min(count, POINTS)).round().astype(int).tolist() if count else []


def _sizes(
    table: Table, names: Sequence[Class], *, counts: Counter[Class], examples: dict[Class, list[int]]
) -> tuple[ClassSize, ...]:
    return tuple(
        ClassSize(
            label=name[1],
            namespace=name[0],
            size=counts[name],
            examples=tuple(table.ref(row) for row in examples[name]),
        )
        for name in names
    )


def _examples(
    table: Table, names: Collection[Class], *, counts: Counter[Class], unusable: Collection[int]
) -> dict[Class, list[int]]:
    """Some rows of each class, spread over it: neighbours in a folder are often alike."""
    wanted = {name: set(evenly(counts[name], limit=2 * EXAMPLES)) for name in names}
    seen: Counter[Class] = Counter()
    found: dict[Class, list[int]] = defaultdict(list)
    for row, name in table.classes():
        if name in wanted:
            usable = table.samples[row].image is not None and row not in unusable
            if seen[name] in wanted[name] and usable:
                found[name].append(row)
            seen[name] += 1
    return defaultdict(
        list, {name: [rows[k] for k in evenly(len(rows), limit=EXAMPLES)] for name, rows in found.items()}
    )


def _apart(counts: Counter[Class]) -> list[tuple[str, tuple[str, ...]]]:
    """Labels that occur in several namespaces, the largest first."""
    spaces: dict[str, list[str]] = defaultdict(list)
    sizes: Counter[str] = Counter()
    for (namespace, label), size in counts.items():
        spaces[label].append(namespace)
        sizes[label] += size
    several = [(label, tuple(sorted(names))) for label, names in spaces.items() if len(names) > 1]
    return sorted(several, key=lambda entry: (-sizes[entry[0]], entry[0]))


def _spelling(counts: Counter[Class]) -> list[tuple[str, ...]]:
    """Labels of one namespace that `normalise` makes equal: "Cat" and "cat"."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for namespace, label in counts:
        alike[namespace, normalise(label)].append(label)
    return sorted(tuple(sorted(labels)) for labels in alike.values() if len(labels) > 1)
