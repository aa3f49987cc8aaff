import pytest

from unicl.data.spec import parse
from unicl.errors import UserError


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("file,title\n", encoding="utf-8")
    return path


def test_every_field_of_the_query_is_read(table):
    (table.parent / "labels.json").write_text("[]", encoding="utf-8")
    query = "image=file&text=title&label=c&weight=2.5&namespace=shop&encoding=gbk&names=labels.json&root=.&format=csv"
    spec = parse(f"{table}?{query}")
    assert (spec.image, spec.text, spec.label) == ("file", "title", "c")
    assert (spec.weight, spec.namespace, spec.encoding, spec.format) == (2.5, "shop", "gbk", "csv")
    assert spec.names == table.parent / "labels.json"
    assert spec.root.resolve() == table.parent
    assert (spec.name, spec.path, spec.folder) == ("captions.csv", table, table.parent)


def test_rows_are_chosen_by_a_column_and_a_value(table):
    assert parse(f"{table}?where=split:test:a").where == (("split", "test:a"),)
    assert parse(str(table)).where == ()
    for wrong in ("split", "split:", ":test"):
        with pytest.raises(UserError, match="write where=COLUMN:VALUE"):
            parse(f"{table}?where={wrong}")


def test_a_value_may_be_empty_or_hold_blanks_and_percent_signs(table):
    spec = parse(f"{table}?text=&label=the class&image=100%25")
    assert (spec.text, spec.label, spec.image) == ("", "the class", "100%")


def test_an_unknown_field_is_an_error_with_a_suggestion(table):
    with pytest.raises(UserError, match=r"unknown field 'wieght' .did you mean 'weight'\?.*image, text, label"):
        parse(f"{table}?wieght=2")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("text", "has no value; write text=VALUE"),
        ("text=a&text=b", "'text' twice"),
        ("weight=0", "not a positive number"),
        ("weight=nan", "not a positive number"),
        ("weight=much", "not a positive number"),
        ("encoding=gb18031", r"not known .did you mean 'gb18030'\?"),
        ("names=none.json", "there is no 'none.json' beside the data"),
    ],
)
def test_a_value_that_cannot_be_meant_is_an_error(table, query, message):
    with pytest.raises(UserError, match=message):
        parse(f"{table}?{query}")


def test_a_file_whose_own_name_holds_a_question_mark_still_opens(tmp_path):
    path = tmp_path / "who?.csv"
    path.write_text("file\n", encoding="utf-8")
    assert parse(str(path)).paths == (path,)
    assert parse(f"{path}?weight=3").weight == 3
    assert parse(f"{path}?text=why?").text == "why?"


def test_a_missing_path_names_a_near_one(table):
    with pytest.raises(UserError, match=r"there is no file or folder '.*caption.csv' .did you mean 'captions.csv'\?"):
        parse(str(table).replace("captions", "caption"))


@pytest.mark.parametrize("typed", ["", "  "])
def test_an_empty_path_is_an_error(typed):
    with pytest.raises(UserError, match="empty path"):
        parse(typed)


def test_an_address_of_anything_but_a_tar_is_an_error():
    with pytest.raises(UserError, match=r"names no tar; only tars \(0000.tar\) are fetched"):
        parse("https://example.org/a.csv")
    with pytest.raises(UserError, match="is an address; unicl fetches tars from https:// and from commands"):
        parse("s3://bucket/0000.tar")


def test_addresses_and_commands_are_expanded_and_may_have_fields():
    spec = parse("https://e.org/a/{0008..0010}.tar?key=x?text=caption&weight=2")
    assert spec.remote == tuple(f"https://e.org/a/{k:04}.tar?key=x" for k in (8, 9, 10))
    assert (spec.text, spec.weight, spec.name) == ("caption", 2.0, "{0008..0010}.tar")
    spec = parse("pipe:aws s3 cp s3://bucket/{0..1}.tar -?label=class")
    assert spec.remote == ("pipe:aws s3 cp s3://bucket/0.tar -", "pipe:aws s3 cp s3://bucket/1.tar -")
    assert (spec.label, spec.name, spec.paths) == ("class", "{0..1}.tar", ())


def test_a_brace_range_names_its_files_in_order(tmp_path):
    for number in range(3):
        (tmp_path / f"{number:02}.tar").write_bytes(b"")
    spec = parse(f"{tmp_path}/{{00..02}}.tar?weight=2")
    assert [path.name for path in spec.paths] == ["00.tar", "01.tar", "02.tar"]
    assert (spec.name, spec.folder, spec.weight) == ("{00..02}.tar", tmp_path, 2)
    with pytest.raises(UserError, match=r"2 of the 5 files .* are not there, the first is .*03\.tar"):
        parse(f"{tmp_path}/{{00..04}}.tar")
    with pytest.raises(UserError, match="more than 100,000 files"):
        parse(f"{tmp_path}/{{0..99999999}}.tar")


def test_a_star_names_the_files_that_fit(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in parse(f"{tmp_path}/*.tar").paths] == ["a.tar", "b.tar"]


def test_files_of_two_folders_are_named_from_the_folder_above_them(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(b"")
    assert list(parse(f"{tmp_path}/{{a,b}}/0.tar").files(".tar")) == ["a/0.tar", "b/0.tar"]


def test_the_folder_of_here_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(".").name == tmp_path.name


def test_streaming_is_for_tars_from_elsewhere_and_may_say_how_far_it_shuffles(tmp_path):
    address = "https://example.org/{0..1}.tar"
    parsed = [parse(f"{address}?stream={value}") for value in ("true", "false", "500")] + [parse(address)]
    assert [(spec.stream, spec.reach) for spec in parsed] == [(True, 0), (False, 0), (True, 500), (False, 0)]
    with pytest.raises(UserError, match="stream='many' is neither true nor a number of samples"):
        parse(f"{address}?stream=many")
    with pytest.raises(UserError, match="those on the disk are read in any order anyway"):
        parse(f"{tmp_path}?stream=true")
