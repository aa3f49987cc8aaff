from dataclasses import astuple

import pytest

from unicl.data.check.labels import SHOWN, class_counts, classes, kinds
from unicl.data.check.table import table
from unicl.space import Sample


def test_every_kind_of_sample_is_counted_once() -> None:
    samples = [
        Sample(id="1", image=b"x", labels=("a",)),
        Sample(id="2", image=b"x", captions=("c",)),
        Sample(id="3", image=b"x", captions=("c", "d"), labels=("a",)),
        Sample(id="4", image=b"x", labels=("a", "b")),
        Sample(id="5", image=b"x"),
        Sample(id="6", captions=("c",)),
        Sample(id="7", captions=("c",), labels=("a",)),
        Sample(id="8", labels=("0",)),
        Sample(id="9"),
    ]
    found = kinds(samples)
    assert astuple(found) == (9, 2, 1, 1, 1, 2, 1, 1, 1, 1)
    assert sum(astuple(found)[1:8]) == found.samples


def test_equal_labels_of_two_sources_are_two_classes_and_named(make_source) -> None:
    shop = make_source([Sample(id="1", labels=("mouse",), namespace="shop")], name="shop")
    zoo = make_source([Sample(id=k, labels=("mouse", k), namespace="zoo") for k in "ab"], name="zoo")
    rows = table([shop, zoo])
    found = classes(rows, class_counts(rows), unusable=())
    assert found.count == 4
    assert found.apart == (("mouse", ("shop", "zoo")),)
    assert found.singletons == 3
    assert (found.largest[0].label, found.largest[0].namespace, found.largest[0].size) == ("mouse", "zoo", 2)


def test_a_label_written_in_two_ways_is_pointed_out(make_source) -> None:
    labels = ("Cat", "cat ", "cat", "dog")
    rows = table([make_source([Sample(id=name, labels=(name,), namespace="n") for name in labels])])
    assert classes(rows, class_counts(rows), unusable=()).spelling == (("Cat", "cat", "cat "),)


def test_class_zero_is_a_class(make_source) -> None:
    rows = table([make_source([Sample(id=str(k), labels=(str(k % 2),)) for k in range(5)])])
    found = classes(rows, class_counts(rows), unusable=())
    assert [(size.label, size.size) for size in found.largest] == [("0", 3), ("1", 2)]
    assert found.ranked == (3, 2)
    assert found.median == pytest.approx(2.5)


def test_examples_come_from_all_over_a_class_and_can_be_read(make_source) -> None:
    samples = [Sample(id=str(k), image=b"%d" % k, labels=("a",)) for k in range(100)]
    rows = table([make_source(samples)])
    found = classes(rows, class_counts(rows), unusable=set(range(50)))
    numbers = [int(ref.id) for ref in found.largest[0].examples]
    assert len(numbers) >= 3
    assert min(numbers) >= 50
    assert max(numbers) - min(numbers) > 20


def test_many_classes_show_both_ends(make_source) -> None:
    samples = [Sample(id=f"{c}-{k}", labels=(f"c{c:03}",)) for c in range(300) for k in range(c + 1)]
    rows = table([make_source(samples)])
    found = classes(rows, class_counts(rows), unusable=())
    assert found.count == 300
    assert [size.size for size in found.largest] == list(range(300, 300 - SHOWN, -1))
    assert found.smallest[-1].size == 1
    assert found.ranked[0] == 300
    assert found.ranked[-1] == 1
    assert 100 < len(found.ranked) < 300
