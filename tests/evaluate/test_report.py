import json
from dataclasses import replace

import pytest

from unicl.errors import UserError
from unicl.evaluate.report import (
    Confused,
    Report,
    Result,
    Score,
    Unreadable,
    figure,
    most_confused,
    shown,
    to_json,
    to_markdown,
)


def score(**changes):
    fields = {"key": "a/b", "name": "b", "value": 0.5, "low": 0.25, "high": 0.75, "n": 1234, **changes}
    return Score(**fields)


def test_numbers_are_found_by_their_keys(report):
    numbers = report.numbers()
    assert numbers["zeroshot/top1"] == report.results[0].scores[0].value
    assert {"retrieval/mean_recall", "probe/top1", "knn/features/k5/top1"} <= set(numbers)


def test_values_are_written_by_their_kind():
    assert figure(score(), 0.1234) == "12.3 %"
    assert figure(score(unit="fraction"), 0.1234) == "0.123"
    assert figure(score(unit="rank"), 1234.5) == "1,234.5"
    assert figure(score(unit="correlation"), -0.1234) == "-12.3"


def test_facts_are_written_for_people():
    assert [shown(fact) for fact in (True, False, 12345, 0.055555, "a")] == ["yes", "no", "12,345", "0.05556", "a"]


def test_json_holds_every_number_with_interval_and_count(report):
    content = json.loads(to_json(report))
    assert content["title"] == "runs/a | <b>"
    assert content["unreadable"] == [{"id": "broken.png", "reason": report.unreadable[0].reason}]
    for result in report.results:
        found = content["results"][result.task]
        for one in result.scores:
            assert found["scores"][one.key] == {"value": one.value, "low": one.low, "high": one.high, "n": one.n}
        assert len(found["classes"]) == len(result.classes)
        assert sum(count for _, _, count in found["confusion"]) == sum(c.count for c in result.confusion)
        assert {k: tuple(v) for k, v in found["ranks"].items()} == result.ranks


def test_json_is_the_same_bytes_again(report):
    assert to_json(report) == to_json(report)


def test_markdown_has_a_row_for_every_number_and_class(report):
    text = to_markdown(report)
    assert text.startswith("# Evaluation of runs/a \\| <b>\n")
    for result in report.results:
        assert f"## {result.title}" in text
        for one in result.scores:
            interval = f"{figure(one, one.low)} to {figure(one, one.high)}"
            assert f"| {one.name} | {figure(one, one.value)} | {interval} | {one.n:,} |" in text
    assert "| red |" in text
    assert "* broken.png: " in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (4, 5)


def test_confusions_come_with_the_commonest_first_and_without_right_ones():
    entries = [("a", "a", 9), ("a", "b", 2), ("b", "c", 5), ("c", "a", 1)]
    result = Result(
        task="t", title="T", scores=(), confusion=tuple(Confused(true=t, predicted=p, count=n) for t, p, n in entries)
    )
    assert [(c.true, c.predicted) for c in most_confused(result, most=2)] == [("b", "c"), ("a", "b")]


def test_saving_writes_three_files_and_no_other(report, tmp_path):
    paths = report.save(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["evaluation.json", "evaluation.md", "evaluation.html"]
    assert sorted((tmp_path / "new" / "folder").iterdir()) == sorted(paths)
    assert paths[0].read_text(encoding="utf-8") == to_json(report)


def test_a_folder_that_cannot_be_written_is_a_users_error(report, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"evaluation.json could not be written: ") as caught:
        report.save(tmp_path / "file" / "folder")
    assert caught.value.code == 1


def test_a_name_that_is_not_utf_8_can_be_saved(report, tmp_path):
    odd = replace(report, unreadable=(Unreadable(id="caf\udce9.png", reason="empty"),))
    assert isinstance(odd, Report)
    paths = odd.save(tmp_path)
    assert all("caf?.png" in path.read_text(encoding="utf-8") for path in paths)
