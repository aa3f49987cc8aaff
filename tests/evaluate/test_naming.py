import pytest

from unicl.errors import UserError
from unicl.evaluate.naming import Finder, numbered, open_table, plain_columns, read_text_ids, wrong_columns
from unicl.space import Sample

SAMPLES = (
    Sample(id="a/1.jpg", captions=("a dog", "Two Dogs")),
    Sample(id="a/2.png"),
    Sample(id="b/2.png"),
)


def test_an_image_is_named_by_its_id_or_by_a_file_name_that_no_other_has():
    find = Finder(SAMPLES, {})
    assert find.images(["a/1.jpg", "1.jpg", "1", "b/2.png"], where="t.csv") == ("a/1.jpg",) * 3 + ("b/2.png",)
    assert not find.is_image("2.png")


def test_a_text_is_named_by_its_id_the_end_of_it_or_itself():
    find = Finder(SAMPLES, {"17": "a cat", "x:18": "a cow"})
    assert find.texts(["17", "COCO_val2014:sentid:17", "x:18", "A  dog"], where="t.csv") == (
        *("a cat", "a cat", "a cow", "a dog"),
    )
    assert find.texts(["a horse"], where="t.csv", any_text=True) == ("a horse",)


def test_names_that_are_not_there_are_counted_and_the_first_three_are_named():
    names = ["1.jpg", "7", "8", "8", "9", "10"]
    with pytest.raises(UserError, match=r"t.csv: 4 of 5 images are not in the data \(first: '7', '8', '9'\)"):
        Finder(SAMPLES, {}).images(names, where="t.csv")
    with pytest.raises(UserError, match=r"1 of 1 texts .* a column caption_id or"):
        Finder(SAMPLES, {}).texts(["COCO_val2014:sentid:5"], where="t.csv")


def test_ids_of_captions_are_read_from_a_column_of_the_data(tmp_path):
    (tmp_path / "a.csv").write_text("file,title,caption_id\nx.jpg,one,11\nx.jpg,two,12\n")
    (tmp_path / "b.jsonl").write_text('{"image": "x.jpg", "captions": ["three", "four"], "sentid": [13, 14]}\n')
    (tmp_path / "c.csv").write_text("file,title\nx.jpg,five\n")
    data = [str(tmp_path / name) for name in ("a.csv", "b.jsonl", "c.csv")]
    assert read_text_ids(data) == {"11": "one", "12": "two", "13": "three", "14": "four"}


def test_ids_of_cocos_captions_are_those_of_its_annotations(tmp_path):
    (tmp_path / "captions.json").write_text(
        '{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [{"id": 98, "image_id": 1, "caption": "one"}]}'
    )
    assert read_text_ids([str(tmp_path / "captions.json")]) == {"98": "one"}


def test_tables_are_opened_by_their_ending(tmp_path):
    (tmp_path / "a.csv").write_text("Image_1,image2,agg score\nx,y,1\n")
    table = open_table(tmp_path / "a.csv")
    assert plain_columns(table) == {"image1": "Image_1", "image2": "image2", "aggscore": "agg score"}
    assert "has the columns 'Image_1', 'image2', 'agg score'; wanted are b" in str(wrong_columns(table, wanted="b"))
    with pytest.raises(UserError, match="no file"):
        open_table(tmp_path / "b.csv")
    (tmp_path / "a.bin").write_text("")
    with pytest.raises(UserError, match="is no table"):
        open_table(tmp_path / "a.bin")


def test_names_are_numbered_in_their_order():
    names, rows = numbered(["b", "a", "b"])
    assert (names, rows.tolist()) == (("b", "a"), [0, 1, 0])
