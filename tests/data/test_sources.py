import gc
import json
import os
from dataclasses import replace

import pytest

from pictures import picture
from tiny import write_photos
from unicl.data.sources import FORMATS, load, load_all, load_as, read_bytes
from unicl.data.spec import parse
from unicl.errors import BadImage, UserError
from unicl.space import Slice


def test_a_source_keeps_what_was_typed(tmp_path):
    photos, captions = write_photos(tmp_path, each=2)
    source = load(f"{captions}?text=title&weight=2&namespace=shop")
    assert (source.name, source.format, source.weight) == ("captions.csv", "csv", 2.0)
    assert {sample.namespace for sample in source.samples} == {"shop"}
    assert source.guessed == {"image": "file", "text": "title"}
    assert (source.path, source.root) == (tmp_path / "captions.csv", tmp_path)
    assert [sample.id for sample in source.samples][:2] == ["photos/red/0.png", "photos/red/1.png"]
    assert load(photos).samples[-1].labels == ("red",)


def test_ids_do_not_depend_on_where_the_data_lies(tmp_path):
    ids = []
    for place in ("here", "some/where/else"):
        (tmp_path / place).mkdir(parents=True)
        photos, captions = write_photos(tmp_path / place, each=2)
        ids.append([sample.id for typed in (photos, captions) for sample in load(typed).samples])
        assert not any(str(tmp_path) in id for id in ids[-1])
    assert ids[0] == ids[1]


def test_a_relative_path_is_the_same_source_from_anywhere(tmp_path, monkeypatch):
    write_photos(tmp_path, each=1)
    monkeypatch.chdir(tmp_path)
    source = load("captions.csv")
    monkeypatch.chdir("/")
    assert all(read_bytes(sample.image) for sample in source.samples)


def test_equal_names_of_several_sources_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_photos(tmp_path / folder, each=1)
    sources = load_all([f"{tmp_path}/a/photos", f"{tmp_path}/b/photos", f"{tmp_path}/a/captions.csv"])
    assert [source.name for source in sources] == ["photos", "photos#2", "captions.csv"]
    assert [source.samples[0].namespace for source in sources] == ["photos", "photos#2", "captions.csv"]
    merged = load_all([f"{tmp_path}/a/photos?namespace=x", f"{tmp_path}/b/photos?namespace=x"])
    assert {sample.namespace for source in merged for sample in source.samples} == {"x"}


def test_labels_are_named_by_a_file_or_an_argument(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("title,label\none,0\ntwo,1\n", encoding="utf-8")
    (tmp_path / "names.json").write_text(json.dumps({"0": "cat", "1": "dog"}), encoding="utf-8")
    (tmp_path / "names.txt").write_text("cat\ndog\n", encoding="utf-8")
    for source in (
        load(f"{path}?names=names.json"),
        load(f"{path}?names=names.txt"),
        load(str(path), names={"0": "cat", "1": "dog"}),
    ):
        assert [sample.labels for sample in source.samples] == [("cat",), ("dog",)]


def test_a_label_that_is_not_in_the_class_list_is_an_error(tmp_path):
    photos, _ = write_photos(tmp_path, each=1)
    with pytest.raises(
        UserError, match=r"photos, blue/0.png: the label 'blue' is not in the class list .did you mean 'blu'"
    ):
        load(photos, names={"red": "red", "green": "green", "blu": "blue sky"})


def test_a_format_can_be_said_when_the_ending_does_not(tmp_path):
    path = tmp_path / "table.dat"
    path.write_text("title\tlabel\none\t0\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"'table.dat' has no ending that says what it is; wanted is a folder or a file in .csv"
    ):
        load(str(path))
    assert load(f"{path}?format=tsv").samples[0].captions == ("one",)
    with pytest.raises(UserError, match=r"format='tvs' is not known .did you mean 'tsv'"):
        load(f"{path}?format=tvs")


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_every_format_refuses_an_empty_file_or_folder_in_words(tmp_path, format):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        with pytest.raises(UserError) as caught:
            load(f"{tmp_path / name}?format={format}")
        assert len(str(caught.value)) > 20


def test_reading_leaves_the_collector_as_it_was(tmp_path):
    _, captions = write_photos(tmp_path, each=1)
    assert gc.isenabled()
    load(captions)
    assert gc.isenabled()
    with pytest.raises(UserError):
        load(f"{captions}?text=none")
    assert gc.isenabled()


def test_bytes_are_read_from_paths_slices_and_memory(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"before" + picture() + b"after")
    assert read_bytes(Slice(path, 6, len(picture()))) == picture()
    assert read_bytes(picture()) == picture()
    assert read_bytes(path).startswith(b"before")


def test_an_image_that_cannot_be_read_has_a_short_reason(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    for image, reason in (
        (tmp_path / "none.png", "missing file"),
        (path / "below.png", "cannot be read: Not a directory"),
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
        (Slice(path, 2, 10), "cut off"),
        (Slice(path, 0, 1 << 40), "larger than 1 GiB"),
        (tmp_path / "a\0.png", "cannot be read"),
    ):
        with pytest.raises(BadImage, match=reason):
            read_bytes(image)


def test_a_hundred_thousand_rows_are_read_without_asking_the_disk_for_each(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "7.jpg").write_bytes(b"7")
    rows = "".join(f"images/{number}.jpg,caption {number},{number % 9}\n" for number in range(100_000))
    (tmp_path / "t.csv").write_text("file,title,label\n" + rows, encoding="utf-8")
    source = load(str(tmp_path / "t.csv"))
    assert len(source.samples) == 100_000
    assert source.samples[-1].captions == ("caption 99999",)
    assert source.notes == ("99,999 of 100,000 image paths lead to no file (first: 'images/0.jpg')",)


def test_a_description_that_was_changed_is_read_like_a_typed_one(tmp_path):
    (tmp_path / "t.csv").write_text("title,other\none,two\n", encoding="utf-8")
    spec = parse(str(tmp_path / "t.csv"))
    assert load_as(spec) == load(str(tmp_path / "t.csv"))
    assert load_as(replace(spec, text="other")).samples[0].captions == ("two",)
