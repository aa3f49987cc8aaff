import base64
import os
import tarfile
from pathlib import Path

import pytest

from unicl.data.keys import stamp
from unicl.data.sources import read_bytes
from unicl.errors import UserError
from unicl.space import RemoteTar, Slice, Streamed
from unicl.use.files import Picture, is_picture, pictures, printable


def test_a_folder_means_its_pictures_and_those_below_in_order(photos, monkeypatch):
    (photos / ".hidden").mkdir()
    (photos / ".hidden" / "x.jpg").write_bytes(b"x")
    (photos / "temple" / ".y.png").write_bytes(b"x")
    monkeypatch.chdir(photos.parent)
    found = pictures(["photos/"])
    assert [p.id for p in found[:3]] == ["photos/cut.jpg", "photos/flower/0.jpg", "photos/flower/1.jpg"]
    assert len(found) == 13
    assert all(isinstance(p.image, Path) and p.image.is_absolute() for p in found)


def test_several_paths_are_joined_and_a_picture_counts_once(photos):
    one = photos / "temple" / "3.jpg"
    found = pictures([one, photos / "temple", one])
    assert [p.id.rpartition("/")[2] for p in found] == ["3.jpg", "0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.jpg"]


def test_a_picture_needs_no_ending_if_it_is_named_itself(photos):
    (photos / "temple" / "0.jpg").rename(photos / "plain")
    assert pictures([photos / "plain"]) == (Picture(id=str(photos / "plain"), image=photos / "plain"),)


def test_a_table_means_the_images_of_its_column(photos):
    (photos / "list.csv").write_text("file,title\ntemple/0.jpg,a\nflower/1.jpg,b\n")
    found = pictures([f"{photos}/list.csv?image=file"])
    assert [p.image for p in found] == [photos / "temple" / "0.jpg", photos / "flower" / "1.jpg"]
    assert all(p.id.startswith("list.csv/") for p in found)


def test_two_tables_with_one_name_do_not_hide_each_other(photos):
    for folder in ("temple", "flower"):
        (photos / folder / "list.csv").write_text("file\n0.jpg\n1.jpg\n")
    found = pictures([photos / "temple" / "list.csv", photos / "flower" / "list.csv"])
    assert len({p.id for p in found}) == len({p.image for p in found}) == 4


def test_a_tar_and_a_folder_of_tars_mean_their_members(photos):
    shards = photos.parent / "shards"
    shards.mkdir()
    with tarfile.open(shards / "00000.tar", "w") as tar:
        tar.add(photos / "temple" / "0.jpg", "000.jpg")
    (found,) = pictures([shards / "00000.tar"])
    assert isinstance(found.image, Slice)
    assert read_bytes(found.image) == (photos / "temple" / "0.jpg").read_bytes()
    assert [p.image for p in pictures([shards])] == [found.image]


def test_base64_in_a_table_is_a_picture(photos):
    content = base64.b64encode((photos / "temple" / "0.jpg").read_bytes()).decode()
    (photos.parent / "inline.tsv").write_text(f"image\ttitle\n{content}\ta\n")
    (found,) = pictures([photos.parent / "inline.tsv"])
    assert read_bytes(found.image) == (photos / "temple" / "0.jpg").read_bytes()


def test_a_path_without_pictures_says_so(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        pictures([tmp_path / "empty"])
    with pytest.raises(UserError, match=r"no picture .*5.jpeg.*did you mean '5.jpg'"):
        pictures([photos / "temple" / "5.jpeg"])
    with pytest.raises(UserError, match="no file or folder"):
        pictures([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no pictures given"):
        pictures([])
    with pytest.raises(UserError, match="a path is empty"):
        pictures([" "])
    (tmp_path / "texts.csv").write_text("title,label\na,b\n")
    with pytest.raises(UserError, match="image=COLUMN"):
        pictures([tmp_path / "texts.csv"])


def test_the_stamp_changes_with_the_picture(photos):
    path = photos / "temple" / "0.jpg"
    first = stamp(path)
    assert first == stamp(path) != stamp(Slice(path, 0, 10)) != stamp(Slice(path, 10, 10))
    os.utime(path, ns=(1, 1))
    assert stamp(path) != first
    assert stamp(b"a") != stamp(b"b")
    assert stamp(photos / "gone.jpg") == ""
    tar = RemoteTar("https://x/0.tar", photos / "0.tar", 99)
    assert stamp(Streamed(tar, 0, 10)) == stamp(Streamed(tar, 0, 10)) != stamp(Streamed(tar, 10, 10))


def test_names_that_are_not_utf8_can_still_be_written():
    assert printable(os.fsdecode(b"caf\xe9.jpg")) == "caf?.jpg"
    assert is_picture("A.JPG")
    assert not is_picture("a.txt")
