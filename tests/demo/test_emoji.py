"""The demo's data set, built from the installed packages."""

import csv
from collections import Counter
from importlib import util

import numpy as np
import pytest
import regex

from unicl.data.image import decode
from unicl.demo.emoji import TEST_ARTIST, TRAIN_ARTIST, build, categories, concepts, default_folder
from unicl.errors import UserError


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("emoji"), size=40)


@pytest.fixture(scope="module")
def known():
    return concepts()


def rows(path):
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_both_artists_share_861_things_in_49_subgroups(known):
    assert len(known) == 861
    assert len({c.subgroup for c in known}) == 49
    assert {c.group for c in known} == {
        "Animals & Nature",
        "Food & Drink",
        "Travel & Places",
        "Activities",
        "Objects",
    }


def test_names_are_one_to_one_with_things_in_both_languages(known):
    assert len({c.title for c in known}) == len({c.title_zh for c in known}) == len(known)
    assert not any(regex.search(r"\p{Han}|:|_", c.title) for c in known)
    with_han = [c for c in known if regex.search(r"\p{Han}", c.title_zh)]
    assert [c.title_zh for c in known if c not in with_han] == ["DVD", "DNA"]
    names = {c.code: (c.title, c.title_zh) for c in known}
    assert names["1F98A"] == ("fox", "狐狸")
    assert names["2708"] == ("airplane", "飞机")  # FE0F follows it in the list, and in no file name


def test_every_subgroup_has_a_readable_category_of_its_own(known):
    table = categories()
    assert {c.subgroup for c in known} == set(table)
    english, chinese = zip(*table.values(), strict=True)
    assert len(set(english)) == len(set(chinese)) == len(table)
    assert all(regex.fullmatch(r"\p{Han}+", name) for name in chinese)
    captions = {c.title for c in known} | {c.title_zh for c in known}
    assert not captions & set(chinese)
    assert not captions & set(english)


def test_a_fifth_of_each_category_is_held_out(known):
    sizes, held = Counter(c.subgroup for c in known), Counter(c.subgroup for c in known if c.unseen)
    for subgroup, size in sizes.items():
        assert held[subgroup] == (round(size / 5) if size > 2 else 0)
        assert held[subgroup] < size
    assert sum(held.values()) == 167


def test_train_and_test_show_the_same_things_by_two_artists(built):
    train, seen, unseen = rows(built.train), rows(built.seen), rows(built.unseen)
    assert [row["title"] for row in train] == [row["title"] for row in seen]
    assert not {row["title"] for row in train} & {row["title"] for row in unseen}
    assert {row["artist"] for row in train} == {TRAIN_ARTIST}
    assert {row["artist"] for row in seen + unseen} == {TEST_ARTIST}
    assert len(train) == 694
    assert len(unseen) == 167
    assert {row["category"] for row in train} == set(built.categories)
    assert {row["category"]: row["category_zh"] for row in train} == built.categories


def test_every_picture_of_the_tables_is_there_and_shows_something(built):
    for row in rows(built.train)[::20] + rows(built.seen)[::20] + rows(built.unseen)[::10]:
        pixels = decode(built.folder / row["file"])
        assert pixels.shape[1:] == ((40, 40) if row["artist"] == TRAIN_ARTIST else (72, 72))
        if row["artist"] == TRAIN_ARTIST:
            assert (pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()  # drawn on white, with a margin
        assert np.ptp(pixels.numpy()) > 60


def test_the_licences_travel_with_the_pictures(built):
    text = (built.folder / "LICENCES.txt").read_text(encoding="utf-8")
    assert "CC-BY-4.0" in text
    assert "CC-BY-SA-4.0" in text


class Stopped(Exception):
    pass


def stop_at(number):
    def say(done, _total):
        if done == number:
            raise Stopped

    return say


def test_a_stopped_build_goes_on_where_it_was_to_the_same_bytes(built, tmp_path):
    with pytest.raises(Stopped):
        build(tmp_path, size=40, say=stop_at(50))
    (folder,) = tmp_path.iterdir()
    drawn = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    assert len(drawn) == 50
    assert not (folder / "train.csv").exists()
    heard = []
    other = build(tmp_path, size=40, say=lambda done, total: heard.append((done, total)))
    assert heard[-1] == (1722, 1722)
    assert all(path.stat().st_mtime_ns == when for path, when in drawn.items())
    first = {p.relative_to(built.folder): p.read_bytes() for p in built.folder.rglob("*") if p.is_file()}
    second = {p.relative_to(other.folder): p.read_bytes() for p in other.folder.rglob("*") if p.is_file()}
    assert first == second
    assert len(first) == 2 * 861 + 5


def test_a_whole_set_is_only_read(built):
    again = build(built.folder.parent, size=40, say=stop_at(1))
    assert again == built
    assert again.categories["birds"] == "鸟类"


def test_another_size_is_another_folder(built):
    with pytest.raises(Stopped):
        build(built.folder.parent, size=20, say=stop_at(1))
    assert len(list(built.folder.parent.iterdir())) == 2


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "resvg_py" else find(name))
    with pytest.raises(UserError, match=r"resvg-py is missing; run: pip install 'unicl\[demo\]'"):
        build(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written to .*file .*--data-folder"):
        build(blocked)


def test_the_default_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "unicl" / "emoji"
