from pathlib import Path

import pytest

from unicl.data.sources import Source
from unicl.data.subset import part_of, part_rows, together
from unicl.errors import UserError
from unicl.space import Finding, Sample


def source(samples):
    return Source(name="s", path=Path(), format="csv", samples=tuple(samples), guessed={}, root=Path())


def labelled(sizes):
    return [Sample(id=f"{name}{k}", labels=(name,)) for name, size in sizes.items() for k in range(size)]


def test_each_class_gives_its_share_and_at_least_one():
    part = part_of(source(labelled({"a": 100, "b": 40, "c": 2})), fraction=0.1, seed=0)
    labels = [sample.labels[0] for sample in part.samples]
    assert {name: labels.count(name) for name in "abc"} == {"a": 10, "b": 4, "c": 1}
    assert part.notes == ("15 of 142 samples, drawn by the seed 0",)


def test_a_seed_is_a_draw_and_a_larger_part_holds_the_smaller_one():
    samples = labelled({"a": 60, "b": 60})
    ten, half = (set(part_rows(samples, fraction=f, seed=3)) for f in (0.1, 0.5))
    assert ten < half
    assert ten == set(part_rows(samples, fraction=0.1, seed=3)) != set(part_rows(samples, fraction=0.1, seed=4))
    assert part_rows(samples, fraction=0.1, seed=3) == sorted(ten)


def test_a_rare_finding_is_there_in_the_smallest_part():
    rare, common = (("rare", Finding.PRESENT),), (("rare", Finding.ABSENT),)
    samples = [Sample(id=str(k), findings=rare if k == 77 else common) for k in range(200)]
    rows = part_rows(samples, fraction=0.01, seed=0)
    assert 77 in rows
    assert len(rows) <= 3
    second = [Sample(id="0", labels=("a", "b")), *labelled({"a": 99})]
    assert 0 in part_rows(second, fraction=0.01, seed=0)


def test_all_of_it_is_the_source_itself_and_other_fractions_are_refused():
    whole = source(labelled({"a": 3}))
    assert part_of(whole, fraction=1, seed=0) is whole
    for fraction in (0, -0.1, 1.5):
        with pytest.raises(UserError, match=r"must lie above 0"):
            part_of(whole, fraction=fraction, seed=0)


def test_a_patient_is_in_a_part_with_all_samples_or_with_none():
    present, absent = (("rare", Finding.PRESENT),), (("rare", Finding.ABSENT),)
    samples = [Sample(id=str(k), patient=f"p{k // 3}", findings=present if k == 17 else absent) for k in range(90)]
    samples += [Sample(id=f"unknown{k}", findings=absent) for k in range(10)]
    rows = part_rows(samples, fraction=0.1, seed=0)
    known = {samples[row].patient for row in rows} - {""}
    assert "p5" in known
    assert all((row in rows) == (sample.patient in known) for row, sample in enumerate(samples) if sample.patient)
    assert together(["a", "", "b", "a", ""]) == [[0, 3], [1], [2], [4]]
    [note] = part_of(source(samples), fraction=0.1, seed=0).notes
    assert note == f"{len(known) + sum(row >= 90 for row in rows)} of 40 patients, {len(rows)} of 100 samples, " + (
        "drawn by the seed 0"
    )
