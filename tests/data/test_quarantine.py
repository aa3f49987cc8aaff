import json

import pytest

from unicl.data.quarantine import Quarantine
from unicl.errors import UserError


def test_a_sample_is_listed_once_with_its_reason(tmp_path):
    quarantine = Quarantine(limit=3, path=tmp_path / "bad.jsonl")
    for _ in range(5):
        quarantine.add("photos/1.jpg", reason="truncated")
    lines = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"id": "photos/1.jpg", "reason": "truncated"}]


def test_over_the_limit_the_first_ones_are_shown(tmp_path):
    quarantine = Quarantine(limit=1, path=tmp_path / "bad.jsonl")
    quarantine.add("a.jpg", reason="empty file")
    with pytest.raises(UserError, match=r"2 samples cannot be read.*--max-bad 1(.|\n)*a\.jpg: empty file") as caught:
        quarantine.add("b.jpg", reason="truncated")
    assert caught.value.code == 1


def test_the_list_is_taken_up_again_even_if_its_last_line_was_cut(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"id": "a.jpg", "reason": "empty"}\n{"id": "b.j')
    assert Quarantine(limit=3, path=tmp_path / "bad.jsonl").reasons == {"a.jpg": "empty"}
