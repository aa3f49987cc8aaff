import pytest

from unicl.data.formats.finding_cells import finding_of
from unicl.data.sources import load
from unicl.errors import UserError
from unicl.space import Finding

TABLE = """image,caption,Age,Edema,Pneumonia,Notes,finding:Old Scar
a.png,one,61,1.0,,fine,0
b.png,two,1,-1.0,0.0,,
c.png,three,44,,,odd,1
"""


def table(folder, text=TABLE, name="x.csv"):
    for image in "abc":
        (folder / f"{image}.png").write_bytes(b"x")
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def found(folder, query, text=TABLE):
    return [dict(sample.findings) for sample in load(f"{table(folder, text)}{query}").samples]


def test_all_columns_that_hold_findings_and_nothing_else_are_read(tmp_path):
    first, second, third = found(tmp_path, "?findings=*")
    assert first == {"Edema": Finding.PRESENT, "Pneumonia": Finding.UNMENTIONED, "Old Scar": Finding.ABSENT}
    assert second == {"Edema": Finding.UNCERTAIN, "Pneumonia": Finding.ABSENT, "Old Scar": Finding.UNMENTIONED}
    assert third["Old Scar"] == Finding.PRESENT


def test_named_columns_are_read_with_and_without_their_prefix(tmp_path):
    assert found(tmp_path, "?findings=Pneumonia,Old Scar")[0].keys() == {"Pneumonia", "Old Scar"}


def test_columns_called_finding_are_read_without_being_asked_for(tmp_path):
    assert found(tmp_path, "")[0].keys() == {"Old Scar"}
    assert found(tmp_path, "?findings=") == [{}, {}, {}]


def test_equal_rows_are_one_object_and_the_columns_in_use_are_told(tmp_path):
    source = load(table(tmp_path, TABLE.replace("-1.0,0.0", "1.0,")) + "?findings=Edema,Pneumonia")
    assert source.samples[0].findings is source.samples[1].findings
    assert source.guessed["findings"] == "Edema and 1 more"


@pytest.mark.parametrize(
    ("cell", "meaning"), [("Present", 1), (True, 1), (0, 0), ("uncertain", -1), (None, -2), (" ", -2)]
)
def test_a_cell_may_be_a_number_or_a_word(cell, meaning):
    assert finding_of(cell) == meaning


def test_what_is_no_finding_is_told_with_its_line_or_column(tmp_path):
    assert finding_of("61") is None
    with pytest.raises(UserError, match=r"x.csv, line 2: the column 'Age' says '61' of a finding; wanted is 1"):
        found(tmp_path, "?findings=Age")
    with pytest.raises(UserError, match=r"no column for the finding 'Edem'.*did you mean 'Edema'.*it has 'image'"):
        found(tmp_path, "?findings=Edem")
    with pytest.raises(UserError, match=r"no column of findings among 'image', 'caption' \(findings=\*\)"):
        found(tmp_path, "?findings=*", "image,caption\na.png,one\n")
