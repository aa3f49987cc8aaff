from pathlib import Path

import pytest

from unicl.data.formats.columns import choose
from unicl.data.spec import Spec
from unicl.errors import UserError


def chosen(*columns, has_image=False, **fields):
    spec = Spec(typed="t.csv", path=Path("/t.csv"), paths=(Path("/t.csv"),), **fields)
    return choose(columns, spec, where="t.csv", has_image=has_image)


@pytest.mark.parametrize(
    ("columns", "image", "texts", "label"),
    [
        (("filepath", "title"), "filepath", ("title",), None),
        (("id", "Image Path", "Caption", "Category"), "Image Path", ("Caption",), "Category"),
        (("URL", "TEXT", "image"), "image", ("TEXT",), None),
        (("图片", "标题", "类别"), "图片", ("标题",), "类别"),
        (("file_name", "label"), "file_name", (), "label"),
        (("label", "class_name", "image"), "image", (), "class_name"),
        (("text",), None, ("text",), None),
        (("img", "caption_0", "caption_2", "caption_10", "caption_1"), "img", None, None),
    ],
)
def test_usual_names_are_guessed(columns, image, texts, label):
    found = chosen(*columns)
    assert found.image == image
    assert found.label == label
    assert found.texts == (("caption_0", "caption_1", "caption_2", "caption_10") if texts is None else texts)


def test_a_named_column_goes_before_the_guess_and_an_empty_name_is_none():
    found = chosen("image", "other", "caption", "label", image="other", label="")
    assert found.wanted == ("other", "caption")
    assert found.described() == {"image": "other", "text": "caption"}


def test_several_text_columns_can_be_named():
    assert chosen("image", "de", "en", text="en,de").texts == ("en", "de")


def test_a_wrong_column_names_the_columns_found():
    with pytest.raises(
        UserError, match=r"no column 'titel' \(did you mean 'title'\?\), which text= names; it has 'image', 'title'"
    ):
        chosen("image", "title", text="titel")


def test_addresses_without_images_are_not_fetched():
    with pytest.raises(UserError, match=r"by address only \(column 'url'\) and unicl fetches nothing.*img2dataset"):
        chosen("url", "caption")
    assert chosen("url", "caption", image="").wanted == ("caption",)


def test_a_table_without_usual_names_asks_for_them():
    with pytest.raises(UserError, match=r"no column of 'a', 'b' has a usual name.*t.csv\?image=COLUMN&text=COLUMN$"):
        chosen("a", "b")


def test_a_table_without_a_header_is_recognised():
    with pytest.raises(UserError, match="first row looks like data: add a header row"):
        chosen("photos/1.JPG", "a red fruit")


def test_images_from_elsewhere_leave_a_column_called_image_alone():
    found = chosen("image", "url", "caption", has_image=True)
    assert (found.image, found.texts) == (None, ("caption",))
