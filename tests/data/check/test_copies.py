from pathlib import Path

import pytest
from PIL import Image

from unicl.data.check.copies import Seen, copies, image_counts
from unicl.data.check.images import Look, look_all
from unicl.data.check.report import Copies
from unicl.data.check.table import image_column, table
from unicl.space import Sample


def found(make_source, *groups: list[Sample]) -> tuple[Copies, list[int]]:
    rows = table([make_source(samples, name=f"s{k}") for k, samples in enumerate(groups)])
    column = image_column(rows.samples)
    looks = look_all(column.files, workers=2, progress=False)
    seen = Seen(column.rows, tuple(look for look in looks if isinstance(look, Look)))
    return copies(rows, column, seen=seen), sorted(image_counts(rows, column, seen=seen))


def test_different_photographs_have_no_copies(make_source, album: list[Path]) -> None:
    facts, counts = found(make_source, [Sample(id=p.name, image=p, captions=("c",)) for p in album])
    assert [f.groups for f in (facts.rows, facts.files, facts.pixels, facts.near)] == [0, 0, 0, 0]
    assert counts == [1] * 10


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".png", "files"), (".bmp", "pixels"), (".jpg", "near")], ids=["bytes", "pixels", "near"]
)
def test_each_kind_of_copy_is_told_apart(make_source, album: list[Path], suffix: str, kind: str) -> None:
    copy = album[3].with_name("copy" + suffix)
    if suffix == ".png":
        copy.write_bytes(album[3].read_bytes())
    else:
        Image.open(album[3]).save(copy)
    samples = [Sample(id=p.name, image=p, labels=(p.stem,), captions=("c",), namespace="n") for p in [*album, copy]]
    facts, counts = found(make_source, samples)
    groups = {name: getattr(facts, name).groups for name in ("rows", "files", "pixels", "near")}
    assert groups == {name: int(name == kind) for name in groups}
    group = getattr(facts, kind).examples[0]
    assert (group.size, {ref.id for ref in group.refs}) == (2, {"photo3.png", copy.name})
    assert getattr(facts, kind).labels_differ == 1
    assert counts[-1] == (1 if kind == "near" else 2)


def test_rows_of_one_file_with_captions_of_their_own_are_seen(make_source, album: list[Path]) -> None:
    samples = [Sample(id=str(k), image=album[k // 5], captions=(f"caption {k}",)) for k in range(10)]
    facts, counts = found(make_source, samples)
    assert (facts.rows.groups, facts.rows.images, facts.rows.captions_differ) == (2, 10, 2)
    assert facts.rows.labels_differ == 0
    assert facts.files.groups == 0
    assert counts == [5, 5]


def test_a_picture_in_two_sources_is_a_leak_not_a_contradiction(make_source, album: list[Path]) -> None:
    train = [Sample(id=p.name, image=p, labels=("a",), namespace="train") for p in album[:6]]
    test = [Sample(id=p.name, image=p.read_bytes(), labels=("b",), namespace="test") for p in album[5:]]
    facts, _ = found(make_source, train, test)
    assert (facts.files.groups, facts.files.across_sources, facts.files.labels_differ) == (1, 1, 0)


def test_images_without_captions_cannot_meet_as_pairs(make_source, album: list[Path]) -> None:
    _, counts = found(make_source, [Sample(id=str(k), image=album[0]) for k in range(3)])
    assert counts == []


def test_members_with_other_labels_are_shown_first(make_source, album: list[Path]) -> None:
    labels = ["cat"] * 8 + ["dog"]
    samples = [
        Sample(id=str(k), image=album[0].read_bytes() + b" " * k, labels=(name,)) for k, name in enumerate(labels)
    ]
    facts, _ = found(make_source, samples)
    group = facts.pixels.label_examples[0]
    assert "8" in [ref.id for ref in group.refs[:2]]
    assert group.labels == ("cat", "dog")


def test_plain_images_are_not_called_alike(make_source, tmp_path: Path) -> None:
    samples = []
    for k, colour in enumerate(("red", "blue", "white", "#fefefe")):
        path = tmp_path / f"{k}.png"
        Image.new("RGB", (50, 50), colour).save(path)
        samples.append(Sample(id=str(k), image=path))
    facts, _ = found(make_source, samples)
    assert facts.near.groups == 0


def test_all_images_of_a_study_are_looked_at_and_count_once(make_source, album: list[Path]) -> None:
    twin = album[2].with_name("twin.png")
    twin.write_bytes(album[2].read_bytes())
    study = Sample(id="s", image=album[0], others=(album[1], album[2]), captions=("c",))
    alone = Sample(id="t", image=twin, captions=("c",))
    column = image_column([study, alone])
    assert column.rows == ((0,), (0,), (0,), (1,))
    facts, counts = found(make_source, [study, alone])
    assert facts.files.groups == 1
    assert counts == [2]
    facts, counts = found(make_source, [Sample(id="s", image=album[2], others=(twin,), captions=("c",))])
    assert counts == [1]
