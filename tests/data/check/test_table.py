from pathlib import Path

from unicl.data.check.report import Ref
from unicl.data.check.table import evenly, image_column, table
from unicl.space import Sample, Slice


def test_rows_of_all_sources_keep_their_source(make_source) -> None:
    first = make_source([Sample(id="a", labels=("x", "y"), namespace="one")], name="one")
    second = make_source([Sample(id="a", captions=("hello", "ciao"))], name="two")
    rows = table([first, second])
    assert [rows.ref(0), rows.ref(1)] == [Ref("one", "a"), Ref("two", "a")]
    assert list(rows.classes()) == [(0, ("one", "x")), (0, ("one", "y"))]
    assert list(rows.captions()) == [(1, "hello"), (1, "ciao")]


def test_rows_that_name_one_file_share_one_image() -> None:
    part = Slice(Path("a.tar"), 512, 99)
    images = [Path("a.png"), b"bytes", Path("a.png"), None, part, Slice(Path("a.tar"), 512, 99)]
    column = image_column([Sample(id=str(k), image=image) for k, image in enumerate(images)])
    assert column.files == (Path("a.png"), b"bytes", part)
    assert column.rows == ((0, 2), (1,), (4, 5))
    assert column.row_count == 5


def test_positions_are_spread_over_the_whole() -> None:
    assert evenly(5, limit=None) == [0, 1, 2, 3, 4]
    assert evenly(100, limit=4) == [12, 37, 62, 87]
    assert evenly(0, limit=4) == []
