import base64
import math
from pathlib import Path

import pytest

from unicl.data.formats.cells import Labels, Ledger, captions, image_of, is_missing, unpacked
from unicl.errors import UserError
from unicl.space import Slice

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


@pytest.mark.parametrize("cell", [None, "", "  \n", math.nan, "nan", "NaN"])
def test_empty_cells_are_missing(cell):
    assert is_missing(cell)
    assert captions([cell]) == ()
    assert Labels(None, where="t")(cell, place="line 2") == ()
    assert image_of(cell, where="t", place="line 2") is None


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        (0, ("0",)),
        ("0", ("0",)),
        (3.0, ("3",)),
        (2.5, ("2.5",)),
        (" cat ", ("cat",)),
        ("cat|dog", ("cat", "dog")),
        ("cat; dog;cat;", ("cat", "dog")),
        ('["cat", "dog"]', ("cat", "dog")),
        ("['cat', 'dog']", ("cat", "dog")),
        ("[0, 2]", ("0", "2")),
        (["cat", 1, None], ("cat", "1")),
        ("[unfinished", ("[unfinished",)),
    ],
)
def test_a_cell_holds_one_label_or_several(cell, labels):
    read = Labels(None, where="t")
    assert read(cell, place="line 2") == labels
    assert read(cell, place="line 3") == labels


def test_labels_are_named_by_the_class_list():
    read = Labels({"0": "cat", "1": "dog", "2": "salt|pepper"}, where="t")
    assert read("0|1", place="") == ("cat", "dog")
    assert read("1.0", place="") == ("dog",)
    assert read("cat", place="") == ("cat",)
    assert read("salt|pepper", place="") == ("salt|pepper",)


def test_a_label_that_is_not_in_the_class_list_names_near_ones():
    read = Labels({"n01": "cat", "n02": "tiger"}, where="t.csv")
    with pytest.raises(
        UserError, match=r"t.csv, line 7: the label 'tigre' is not in the class list .did you mean 'tiger'"
    ):
        read("tigre", place="line 7")


def test_numbered_features_have_names_and_minus_one_is_none():
    read = Labels(None, where="t", features=("cat", "dog"))
    assert read(1, place="") == ("dog",)
    assert read(-1, place="") == ()
    assert read([0, 1], place="") == ("cat", "dog")


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        ([" a cat "], ("a cat",)),
        (["a cat", "a cat", "a dog"], ("a cat", "a dog")),
        ([["a cat", "", None, "a dog"]], ("a cat", "a dog")),
        (['["a cat", "a dog"]'], ("a cat", "a dog")),
        (["[laughs] a cat"], ("[laughs] a cat",)),
        (["[laughs]"], ("[laughs]",)),
        ([7], ("7",)),
        (["一只红苹果"], ("一只红苹果",)),
    ],
)
def test_captions_are_stripped_and_stand_once(cells, texts):
    assert captions(cells) == texts


@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_and_data_addresses_give_bytes(alphabet):
    text = alphabet(PICTURE).decode()
    assert image_of(text, where="t", place="") == PICTURE
    assert image_of(text.rstrip("="), where="t", place="") == PICTURE
    assert image_of("data:image/png;base64," + text, where="t", place="") == PICTURE


def test_paths_bytes_and_structs_are_told_apart():
    long = "a" * 300 + "/photo one.jpg"
    assert image_of(long, where="t", place="") == long
    assert image_of("photos/cat", where="t", place="") == "photos/cat"
    assert image_of(PICTURE, where="t", place="") == PICTURE
    assert image_of({"bytes": PICTURE, "path": "a.png"}, where="t", place="") == PICTURE
    assert image_of({"bytes": None, "path": "a.png"}, where="t", place="") == "a.png"
    assert image_of({"bytes": None, "path": None}, where="t", place="") is None
    assert image_of(Slice(Path("a"), 1, 2), where="t", place="") == Slice(Path("a"), 1, 2)


def test_an_address_or_a_number_is_no_image():
    with pytest.raises(UserError, match=r"t.csv, line 3: the image is an address.*fetches nothing"):
        image_of("https://example.org/a.jpg", where="t.csv", place="line 3")
    with pytest.raises(UserError, match="the image column holds int"):
        image_of(12, where="t.csv", place="line 3")


def test_what_is_no_base64_is_refused():
    with pytest.raises(ValueError, match="not base64"):
        unpacked("/9j/!!!!")


def test_the_ledger_counts_and_keeps_the_first_place():
    ledger = Ledger()
    ledger.note("once")
    ledger.note("once")
    for line in (4, 9):
        ledger.count("rows without a caption", place=f"line {line}")
    assert ledger.notes() == ("once", "rows without a caption: 2 (first: line 4)")
