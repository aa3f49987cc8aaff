import math
from pathlib import Path

import pytest

from unicl.data.formats.cells import Ledger
from unicl.data.formats.rows import Group, Reading, Table, group_samples, parse_object, table_samples
from unicl.data.spec import Spec
from unicl.errors import UserError


def reading(folder, **fields):
    spec = Spec(typed="t", path=folder / "t", paths=(folder,), **fields)
    return Reading(spec=spec, name="t", namespace="shop", names=None, ledger=Ledger())


def table(columns, rows, **options):
    def read(wanted):
        for number, row in enumerate(rows, start=2):
            yield number, [row[columns.index(name)] for name in wanted]

    return Table(where="t.csv", columns=columns, rows=read, **options)


def test_a_table_needs_an_image_a_text_or_a_label(tmp_path):
    rows = [(b"1", "one", 0), (None, "two", None), (None, None, None)]
    samples = list(table_samples([table(("image", "text", "label"), rows)], reading(tmp_path)))
    assert [(s.id, s.image, s.captions, s.labels, s.namespace) for s in samples] == [
        ("line 2", b"1", ("one",), ("0",), "shop"),
        ("line 3", None, ("two",), (), "shop"),
    ]


def test_ids_of_several_tables_do_not_meet(tmp_path):
    tables = [table(("text",), [("a",)], prefix=f"{number}:") for number in range(2)]
    assert [sample.id for sample in table_samples(tables, reading(tmp_path))] == ["0:line 2", "1:line 2"]


def test_numbers_of_classes_are_named_by_the_table(tmp_path):
    found = table_samples([table(("label", "text"), [(1, "x")], classes={"label": ("cat", "dog")})], reading(tmp_path))
    assert next(found).labels == ("dog",)


def test_texts_beside_an_image_win_over_its_json(tmp_path):
    group = Group(id="a.jpg", stem="a", image=Path("a.jpg"), fields={"json": b'{"caption": "two"}', "txt": b"one"})
    assert next(group_samples([group], reading(tmp_path))).captions == ("one",)
    assert next(group_samples([group], reading(tmp_path, text="caption"))).captions == ("two",)


def test_the_label_of_a_group_comes_before_the_one_in_its_files(tmp_path):
    group = Group(id="cat/a.jpg", stem="cat/a", image=b"a", fields={"cls": b"7"}, label="cat")
    assert next(group_samples([group], reading(tmp_path))).labels == ("cat", "7")


@pytest.mark.parametrize("text", ["{", "[]", "3", "nothing"])
def test_what_is_no_object_is_named(text):
    with pytest.raises(UserError, match="t.jsonl, line 3 (is not JSON|holds)"):
        parse_object(text, where="t.jsonl, line 3")


def test_rows_with_other_values_in_a_column_are_not_read(tmp_path):
    rows = [("one", "test", 1), ("two", "train", 1), ("three", "test", 2)]
    several = [table(("text", "split", "fold"), rows)]

    def read(*where):
        return [s.captions for s in table_samples(several, reading(tmp_path, where=where))]

    assert read(("split", "test")) == [("one",), ("three",)]
    assert read(("split", "test"), ("fold", "2")) == [("three",)]
    with pytest.raises(UserError, match="no row of t.csv has 'val' in the column 'split'"):
        read(("split", "val"))
    with pytest.raises(UserError, match=r"t.csv has no column 'spilt' .did you mean 'split'.*which where= names"):
        read(("spilt", "test"))


def test_groups_of_files_have_no_columns_to_choose_by(tmp_path):
    with pytest.raises(UserError, match="where= chooses rows of a table"):
        list(group_samples([], reading(tmp_path, where=(("split", "test"),))))


@pytest.mark.parametrize(
    ("fields", "patients"),
    [
        ({}, ["7", "7", ""]),
        ({"patient": "who"}, ["a", "b", "b"]),
        ({"patient": ""}, ["", "", ""]),
        ({"patient": "", "study": "who"}, ["a", "b"]),
        ({"study": "who"}, ["7", "7"]),
    ],
)
def test_a_patient_is_in_a_column_of_the_usual_name_or_the_one_that_is_named_or_the_study(tmp_path, fields, patients):
    rows = [(b"1", "one", 7.0, "a"), (b"2", "two", 7.0, "b"), (b"3", "three", math.nan, "b")]
    columns = ("image", "text", "Patient ID", "who")
    assert [s.patient for s in table_samples([table(columns, rows)], reading(tmp_path, **fields))] == patients


def test_a_column_of_patients_alone_is_no_data(tmp_path):
    with pytest.raises(UserError, match="no column of 'patient_id' has a usual name for an image"):
        list(table_samples([table(("patient_id",), [(1,)])], reading(tmp_path)))
