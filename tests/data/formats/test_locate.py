from pathlib import Path

import pytest

from unicl.data.formats.locate import Locator, inside
from unicl.errors import UserError


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.jpg").write_bytes(b"a")
    (tmp_path / "secret.jpg").write_bytes(b"s")
    return folder


def locator(base, root=None):
    return Locator(base=base, root=root, where="t.csv")


@pytest.mark.parametrize(
    "name", ["images/a.jpg", "./images/a.jpg", "images//a.jpg", "images\\a.jpg", "images/../images/a.jpg"]
)
def test_ways_to_write_a_path_give_one_id(data, name):
    locate = locator(data)
    assert locate.locate(name, place="line 2") == ("images/a.jpg", data / "images" / "a.jpg")
    assert (locate.found, locate.missing) == (1, 0)


def test_an_absolute_path_under_the_data_folder_has_a_relative_id(data):
    id, path = locator(data).locate(str(data / "images" / "a.jpg"), place="line 2")
    assert (id, path) == ("images/a.jpg", data / "images" / "a.jpg")


@pytest.mark.parametrize("name", ["../secret.jpg", "images/../../secret.jpg", "/etc/passwd", "..", "images/../.."])
def test_a_path_that_leaves_the_data_folder_is_refused(data, name):
    with pytest.raises(UserError, match=r"t.csv, line 5: the image path '.*' leaves the data folder.*root=DIR"):
        locator(data).locate(name, place="line 5")


def test_links_that_leave_the_data_folder_are_refused_and_others_followed(data):
    (data / "images" / "out.jpg").symlink_to(data.parent / "secret.jpg")
    (data / "images" / "in.jpg").symlink_to(data / "images" / "a.jpg")
    (data / "away").symlink_to(data.parent)
    locate = locator(data)
    assert locate.locate("images/in.jpg", place="line 2")[0] == "images/in.jpg"
    for name in ("images/out.jpg", "away/secret.jpg"):
        with pytest.raises(UserError, match="leaves the data folder"):
            locate.locate(name, place="line 2")


def test_a_wider_root_allows_what_the_folder_does_not(data):
    locate = locator(data, root=Path("/"))
    secret = data.parent / "secret.jpg"
    assert locate.locate(str(secret), place="line 2")[1] == secret
    assert locate.locate("images/a.jpg", place="line 3") == ("images/a.jpg", data / "images" / "a.jpg")
    assert locate.missing == 0


def test_a_root_of_its_own_is_where_paths_start(data):
    tables = data.parent / "tables"
    tables.mkdir()
    locate = locator(tables, root=data)
    assert locate.locate("images/a.jpg", place="line 2") == ("images/a.jpg", data / "images" / "a.jpg")
    with pytest.raises(UserError, match="leaves the data folder"):
        locate.locate("../secret.jpg", place="line 3")


def test_a_data_folder_behind_a_link_is_one_folder(data):
    link = data.parent / "link"
    link.symlink_to(data)
    for base, name in ((link, data / "images" / "a.jpg"), (data, "images/a.jpg"), (link, "images/a.jpg")):
        assert locator(base).locate(str(name), place="line 2")[0] == "images/a.jpg"


def test_missing_files_are_counted_and_the_first_is_kept(data):
    locate = locator(data)
    for name in ("images/a.jpg", "images/b.jpg", "none/c.jpg", "bad\0name/d.jpg"):
        locate.locate(name, place="line 2")
    assert (locate.found, locate.missing, locate.first_missing) == (1, 3, "images/b.jpg")
    assert locate.first_tried == str(data / "images" / "b.jpg")


def test_inside_knows_names_that_begin_alike(data):
    assert inside(str(data / "images"), data)
    assert not inside(f"{data}-other/a.jpg", data)
