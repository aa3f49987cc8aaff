import base64
import json

import pytest

from pictures import picture
from unicl.data.formats.tables import csv_table, json_table
from unicl.data.image import decode
from unicl.data.sources import load
from unicl.data.spec import parse
from unicl.errors import UserError
from unicl.space import Sample


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.png").write_bytes(picture())
    return tmp_path


def write(folder, text, name="t.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return str(path)


def brief(source):
    return [(sample.id, sample.captions, sample.labels) for sample in source.samples]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'filepath,title,label\nimages/a.png,"red, round",0\nimages/b.png,green,1\n'),
        ("t.csv", "filepath\ttitle\tlabel\nimages/a.png\tred, round\t0\nimages/b.png\tgreen\t1\n"),
        ("t.tsv", "filepath\ttitle\tlabel\nimages/a.png\tred, round\t0\nimages/b.png\tgreen\t1\n"),
        ("t.csv", "filepath;title;label\nimages/a.png;red, round;0\nimages/b.png;green;1\n"),
        ("t.csv", "filepath| title| label\r\nimages/a.png|red, round |0\r\nimages/b.png|green|1\r\n"),
        ("t.csv", '\ufefffilepath,title,label\n\nimages/a.png,"red, round",0\n\nimages/b.png,green,1'),
        (
            "t.jsonl",
            '{"image":"images/a.png","text":"red, round","label":0}\n\n'
            '{"image":"images/b.png","text":"green","label":1}',
        ),
        (
            "t.json",
            '[{"image":"images/a.png","text":"red, round","label":0},'
            '{"image":"images/b.png","text":"green","label":1}]',
        ),
    ],
)
def test_every_way_to_write_a_table_gives_the_same_samples(folder, name, text):
    source = load(write(folder, text, name))
    assert brief(source) == [("images/a.png", ("red, round",), ("0",)), ("images/b.png", ("green",), ("1",))]
    assert source.samples[0].image == folder / "images" / "a.png"
    assert source.samples[0].namespace == source.name == name
    assert source.notes == ()


def test_the_format_and_the_columns_in_use_are_told(folder):
    source = load(write(folder, "file\ttitle\nimages/a.png\tred\n", "t.tsv"))
    assert source.format == "tsv"
    assert dict(source.guessed) == {"image": "file", "text": "title"}
    assert (source.path, source.root) == (folder / "t.tsv", folder)


def test_rows_that_repeat_an_image_are_one_sample_with_all_its_captions(folder):
    text = "file,title,label\nimages/a.png,one,x\nimages/b.png,other,x\nimages/a.png,two,y\n./images/a.png,one,x\n"
    assert brief(load(write(folder, text))) == [
        ("images/a.png", ("one", "two"), ("x", "y")),
        ("images/b.png", ("other",), ("x",)),
    ]


def test_captions_stand_in_columns_of_their_own(folder):
    source = load(write(folder, "file,caption_0,caption_1\nimages/a.png,one,two\nimages/b.png,one,\n"))
    assert [sample.captions for sample in source.samples] == [("one", "two"), ("one",)]
    assert source.guessed["text"] == "caption_0, caption_1"


def test_empty_cells_are_counted_and_zero_is_a_label(folder):
    source = load(write(folder, "file,title,label\nimages/a.png,  ,0\nimages/b.png,nan,\n,only a text,\n,,\n"))
    assert brief(source) == [("images/a.png", (), ("0",)), ("images/b.png", (), ()), ("line 4", ("only a text",), ())]
    assert source.samples[2].image is None
    assert source.notes == (
        "rows without a caption: 2 (first: line 2)",
        "rows without an image: 1 (first: line 4)",
        "empty rows left out: 1 (first: line 5)",
    )


def test_a_table_of_texts_alone_flows(folder):
    source = load(write(folder, "title\na red fruit\na blue sea\n"))
    assert source.samples[1] == Sample(id="line 3", captions=("a blue sea",), namespace="t.csv")
    assert source.notes == ()


def test_base64_images_are_bytes_however_long(folder):
    content = picture() + bytes(300_000)
    big = base64.b64encode(content).decode()
    for separator, name in ((",", "t.csv"), ("\t", "t.tsv")):
        source = load(write(folder, f"image{separator}title\n{big}{separator}red\n", name))
        assert source.samples[0].image == content
        assert source.samples[0].id == "line 2"
        assert decode(source.samples[0].image).shape == (3, 20, 24)


def test_tabs_without_quotes_keep_their_quotation_marks(folder):
    rows = 'images/a.png\t"Red" is a colour\nimages/b.png\t"open\nimages/c.png\tlast"\n'
    source = load(write(folder, f"file\ttitle\n{rows}", "t.tsv"))
    assert [sample.captions[0] for sample in source.samples] == ['"Red" is a colour', '"open', 'last"']


def test_tabs_with_quotes_lose_them(folder):
    source = load(write(folder, 'file\ttitle\nimages/a.png\t"said ""hi""\tand\nleft"\n', "t.tsv"))
    assert source.samples[0].captions == ('said "hi"\tand\nleft',)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv is empty; wanted is a header row"),
        (" \n\n", "t.csv is empty"),
        ("file,title\n", "t.csv holds no rows"),
        (
            "file,title\nimages/a.png,red, round\n",
            r"t.csv, line 2 has 3 cells and the header has 2; put quotation marks",
        ),
        (
            'file,title\nimages/a.png,"red\nimages/b.png,green\n',
            r"t.csv, line 3: unexpected end of data; a cell that begins",
        ),
        ("file,title\n../a.png,red\n", r"t.csv, line 2: the image path '../a.png' leaves the data folder"),
        ("file,title\nhttps://e.org/a.png,red\n", "t.csv, line 2: the image is an address"),
        (
            "file,title\nnone/a.png,x\nnone/b.png,y\n",
            r"none of the 2 images .* tried first: '.*none/a.png'.*t.csv\?root=DIR",
        ),
        ("a,b\n1,2\n", "no column of 'a', 'b' has a usual name"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(folder, text, message):
    with pytest.raises(UserError, match=message):
        load(write(folder, text))


def test_a_wrong_column_names_the_columns_found(folder):
    path = write(folder, "file,caption\nimages/a.png,red\n")
    with pytest.raises(UserError, match=r"no column 'title' .*which text= names; it has 'file', 'caption'"):
        load(f"{path}?text=title")


def test_some_missing_images_are_a_note(folder):
    source = load(write(folder, "file,title\nimages/a.png,x\nimages/none.png,y\n"))
    assert len(source.samples) == 2
    assert source.notes == ("1 of 2 image paths lead to no file (first: 'images/none.png')",)


def test_a_row_that_is_short_is_filled_with_empty_cells(folder):
    assert brief(load(write(folder, "file,title,label\nimages/a.png,red\n"))) == [("images/a.png", ("red",), ())]


def test_another_encoding_is_proposed_and_then_read(folder):
    path = write(folder, "file,标题\nimages/a.png,一个红苹果\n", encoding="gb18030")
    with pytest.raises(UserError, match=r"t.csv is not UTF-8 text.*line 1.*add \?encoding=NAME"):
        load(path)
    assert brief(load(f"{path}?encoding=gb18030")) == [("images/a.png", ("一个红苹果",), ())]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_from_spreadsheets_are_read(folder, encoding):
    path = write(folder, "file\ttitle\nimages/a.png\t红苹果\n", encoding=encoding)
    assert brief(load(path)) == [("images/a.png", ("红苹果",), ())]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.jsonl is empty; wanted is one object a line"),
        ('{"image": "images/a.png"}\n{"image": \n', "t.jsonl, line 2 is not JSON: .*in '{\"image\":'"),
        ('{"image": "images/a.png"}\n[1]\n', "t.jsonl, line 2 holds '\\[1\\]'; wanted is an object"),
        ("[" * 100_000 + "\n", "t.jsonl, line 1 is not JSON"),
        ('{"image": 7}\n', "t.jsonl, line 1: the image column holds int"),
    ],
)
def test_json_lines_that_cannot_be_read_say_where(folder, text, message):
    with pytest.raises(UserError, match=message):
        load(write(folder, text, "t.jsonl"))


def test_json_lines_hold_lists_and_nulls(folder):
    rows = [
        {"image": "images/a.png", "captions": ["one", "two", ""], "labels": [0, "x"]},
        {"image": None, "captions": "text", "labels": None},
        {"captions": ["late"], "image": "images/b.png", "extra": 1},
    ]
    source = load(write(folder, "\n".join(map(json.dumps, rows)), "t.jsonl"))
    assert brief(source) == [
        ("images/a.png", ("one", "two"), ("0", "x")),
        ("line 2", ("text",), ()),
        ("images/b.png", ("late",), ()),
    ]


def test_coco_captions_and_labels_are_read(folder):
    whole = {
        "images": [{"id": 1, "file_name": "images/a.png"}, {"id": 2, "file_name": "images/b.png"}],
        "categories": [{"id": 9, "name": "apple"}],
        "annotations": [
            {"image_id": 1, "caption": "one"},
            {"image_id": 1, "caption": "two"},
            {"image_id": 1, "category_id": 9},
        ],
    }
    source = load(write(folder, json.dumps(whole, indent=1), "coco.json"))
    assert brief(source) == [("images/a.png", ("one", "two"), ("apple",)), ("images/b.png", (), ())]
    del whole["images"][0]["file_name"]
    with pytest.raises(UserError, match="looks like COCO's layout, but 'file_name' is missing"):
        load(write(folder, json.dumps(whole), "coco.json"))


def test_a_json_file_that_is_no_table_says_so(folder):
    with pytest.raises(UserError, match="holds one dict; wanted is a list of objects"):
        load(write(folder, '{\n"a": 1\n}', "t.json"))
    with pytest.raises(UserError, match="t.json, line 2 is not JSON"):
        load(write(folder, '[{"image": 1},\n{]', "t.json"))


def test_files_of_one_source_keep_their_rows_apart(folder):
    for number in range(2):
        write(folder, f"title\ntext {number}\n", f"{number}.csv")
    source = load(f"{folder}/{{0..1}}.csv")
    assert [sample.id for sample in source.samples] == ["0.csv:line 2", "1.csv:line 2"]
    write(folder, "other\nx\n", "1.csv")
    with pytest.raises(UserError, match="1.csv lacks the column 'title' of the first file; it has 'other'"):
        load(f"{folder}/{{0..1}}.csv")


def test_readers_give_only_the_columns_asked_for(folder):
    path = parse(write(folder, "a,b,c\n1,2,3\n")).path
    assert list(csv_table(path, encoding="").rows(("c", "a"))) == [(2, ["3", "1"])]
    path = parse(write(folder, '{"a": 1, "b": 2}\n', "t.jsonl")).path
    assert list(json_table(path, encoding="").rows(("b", "x"))) == [(1, [2, None])]
