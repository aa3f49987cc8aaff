"""The script that writes the README's table of results."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load():
    spec = importlib.util.spec_from_file_location("results_table", ROOT / "benchmarks" / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = load()


def test_a_row_shows_both_sides_and_marks_what_was_reached():
    row = {"what": "speed | two", "ours": 12.345, "peer": 5000, "peer name": "open_clip", "ratio": 2.5, "wanted": 2.4}
    line = TABLE.table([TABLE.row_of(row, script="step")]).splitlines()[-1]
    assert line == "| speed / two | 12.3 | 5,000 open_clip | **2.5** | 2.4 | [step.py](benchmarks/step.py) |"


def test_a_ratio_that_was_missed_is_plain_and_what_there_is_not_is_empty():
    assert TABLE.row_of({"what": "x", "ratio": 1.4, "wanted": 1.5}, script="s")[1:5] == ("", "", "1.4", "1.5")


def test_a_row_without_a_name_is_an_error():
    with pytest.raises(ValueError, match=r"step\.json"):
        TABLE.row_of({"ours": 1}, script="step")


def test_results_without_rows_are_left_out(tmp_path):
    for content in ({"seeds": 3}, {"rows": 1024}, [1, 2]):
        (tmp_path / "demo.json").write_text(json.dumps(content))
        assert TABLE.rows_of(tmp_path / "demo.json") == []


def test_only_what_stands_between_the_comments_changes():
    page = f"before\n{TABLE.BEGIN}\nold\n{TABLE.END}\nafter"
    assert TABLE.placed(page, "new") == f"before\n{TABLE.BEGIN}\nnew\n{TABLE.END}\nafter"
    with pytest.raises(ValueError, match="once each"):
        TABLE.placed("no place", "new")


def test_the_readme_shows_the_results_that_are_committed():
    rows = [row for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")) for row in TABLE.rows_of(path)]
    assert rows
    assert TABLE.table(rows) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_make_bench_runs_every_script():
    """A script is what can be run; other modules there only help one."""
    listed = re.search(r"^BENCHMARKS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    found = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert sorted(listed) == sorted(found - {"table"})
