import json
from pathlib import Path

import pytest
from PIL import Image

from unicl.data.check.report import CheckReport, Level
from unicl.data.check.run import check
from unicl.data.sources import load_all
from unicl.errors import UserError
from unicl.space import Sample


@pytest.fixture
def messy(make_source, album: list[Path], tmp_path: Path) -> list:
    """Photographs with labels and captions, and one of each thing that goes wrong."""
    copy, small = tmp_path / "copy.jpg", tmp_path / "tiny.png"
    Image.open(album[0]).save(copy)
    Image.open(album[1]).crop((0, 0, 90, 20)).save(small)
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.jpg").write_bytes(copy.read_bytes()[:900])
    labels = ("temple", "temple", "flower")
    first = [Sample(id=p.name, image=p, labels=(labels[k % 3],), namespace="a") for k, p in enumerate(album)]
    second = [Sample(id=n, image=tmp_path / n, captions=(f"a {n}",)) for n in ("empty.jpg", "cut.jpg", "tiny.png")]
    second += [Sample(id="copy", image=copy, labels=("flower",), namespace="b"), Sample(id="text", captions=("a red",))]
    return [make_source(first, name="folder"), make_source(second, name="table.csv")]


def test_the_report_counts_what_is_there(messy: list) -> None:
    found = check(messy, batch_size=4, workers=2)
    assert (found.kinds.samples, found.kinds.image_label, found.kinds.image_caption, found.kinds.text_only) == (
        15,
        11,
        3,
        1,
    )
    assert (found.images.distinct, found.images.looked, found.images.unreadable) == (14, 14, 2)
    assert {entry.ref.id for entry in found.images.unreadable_list} == {"empty.jpg", "cut.jpg"}
    assert sum(count for _, count in found.images.reasons) == 2
    assert (found.images.tiny, found.images.long) == (1, 1)
    assert found.images.width == (90, 160, 160)
    assert (found.copies.near.groups, found.copies.near.across_sources) == (1, 1)
    assert found.classes.apart == (("flower", ("a", "b")),)
    assert [source.name for source in found.sources] == ["folder", "table.csv"]
    assert found.sources[0].notes == ("12 rows without an image",)
    assert found.recipe == "itl"
    assert not found.problems


def test_every_look_says_what_to_do(messy: list) -> None:
    found = check(messy, batch_size=4)
    assert all(finding.advice for finding in found.findings if finding.level is not Level.OK)


def test_the_same_data_give_the_same_report(messy: list) -> None:
    assert check(messy, workers=1) == check(messy, workers=3)


def test_a_sample_of_the_images_is_spread_and_said(messy: list) -> None:
    found = check(messy, max_images=5)
    assert (found.images.distinct, found.images.looked) == (14, 5)
    assert any("a sample: there are 14" in finding.text for finding in found.findings)


def test_floors_cover_the_batch_asked_for_and_those_the_data_can_fill(messy: list) -> None:
    found = check(messy, batch_size=8)
    assert {(m.key, m.batch_size) for m in found.meetings} == {("class", 8), ("caption", 8), ("image", 8)}
    by_key = {m.key: m.numbers for m in found.meetings}
    assert by_key["class"].floor > 1
    assert by_key["caption"].floor == 0


def test_no_sample_is_a_clear_error(make_source) -> None:
    with pytest.raises(UserError, match=r"empty\.csv holds no samples"):
        check([make_source([], name="empty.csv")])
    with pytest.raises(UserError, match="no source"):
        check([])


def test_json_holds_every_number_under_its_name(messy: list) -> None:
    found = check(messy, batch_size=4)
    data = json.loads(found.to_json())
    assert data["kinds"]["samples"] == 15
    assert data["images"]["unreadable_list"][0]["ref"]["source"] == "table.csv"
    assert data["findings"][0]["level"] == "ok"
    assert set(data) == set(CheckReport.__dataclass_fields__)


def test_text_alone_can_be_checked_and_is_called_what_it_is(make_source) -> None:
    found = check([make_source([Sample(id=str(k), captions=(f"text {k}",)) for k in range(9)])])
    assert found.images.distinct == 0
    assert found.problems[0].text == "no image has a caption or a label"


def test_folders_and_tables_are_checked_as_they_are_on_disk(tmp_path: Path, photos: list[Image.Image]) -> None:
    for k in range(12):
        place = tmp_path / "photos" / ("temple" if k % 2 else "flower")
        place.mkdir(parents=True, exist_ok=True)
        photos[k].save(place / f"{k}.png")
    (tmp_path / "photos" / "temple" / "broken.jpg").write_bytes(b"no image")
    lines = [f"photos/flower/{k}.png,a flower number {k}" for k in range(0, 12, 2)]
    (tmp_path / "captions.csv").write_text("filepath,title\n" + "\n".join(lines) + "\n", encoding="utf-8")
    found = check(load_all([str(tmp_path / "photos"), str(tmp_path / "captions.csv")]), batch_size=8)
    assert (found.kinds.image_label, found.kinds.image_caption) == (13, 6)
    assert {size.label: size.size for size in found.classes.largest} == {"temple": 7, "flower": 6}
    assert found.images.unreadable == 1
    assert found.images.distinct == 13
    assert (found.copies.rows.groups, found.copies.rows.across_sources) == (6, 6)
    assert found.sources[1].columns["text"] == "title"
    assert found.recipe == "itl"
