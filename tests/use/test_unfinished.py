"""Lines that outlive a run."""

import json
import subprocess
import sys

import pytest

from unicl.errors import UserError
from unicl.use.unfinished import unfinished

MADE_BY = {"format": 1, "model": "a", "beams": 5}


def stopped(path, *batches):
    """What a run keeps that is stopped after some batches."""
    with unfinished(path, made_by=MADE_BY) as kept:
        for batch in batches:
            kept.add([{"id": id, "caption": f"über {id}"} for id in batch])


def known(path, made_by=MADE_BY):
    with unfinished(path, made_by=made_by) as kept:
        return set(kept.known)


def test_what_was_added_is_there_again_until_it_is_forgotten(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    stopped(path, "ab", "c")
    stopped(path, "d")
    with unfinished(path, made_by=MADE_BY) as kept:
        assert kept.known["c"] == {"id": "c", "caption": "über c"}
        assert list(kept.known) == ["a", "b", "c", "d"]
        kept.forget()
    assert not path.exists()
    assert known(path) == set()


def test_a_line_that_was_cut_off_anywhere_was_never_written(tmp_path):
    path = tmp_path / "a.jsonl"
    stopped(path, "ab", "c")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for size in [*range(0, len(whole), 7), len(lines[0]), len(lines[0] + lines[1])]:
        path.write_bytes(whole[:size])
        there = sum(len(b"".join(lines[:number])) <= size for number in (2, 3, 4))
        assert known(path) == set("abc"[:there])
        assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_a_damaged_line_ends_what_is_known(tmp_path):
    path = tmp_path / "a.jsonl"
    stopped(path, "abc")
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in (b"\x00\x00\n", b"[1]\n", b"{}\n"):
        path.write_bytes(b"".join([*lines[:2], wrong, *lines[3:]]))
        assert known(path) == {"a"}


def test_lines_of_something_else_are_not_gone_on_with(tmp_path):
    path = tmp_path / "a.jsonl"
    stopped(path, "a")
    with pytest.raises(UserError, match="another model, beams 5 and not 3; give what that run had"):
        known(path, {"format": 1, "model": "b", "beams": 3})
    assert known(path) == {"a"}


def test_one_process_at_a_time_has_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    code = (
        "import sys; from pathlib import Path; from unicl.use.unfinished import unfinished\n"
        f"with unfinished(Path({str(path)!r}), made_by={MADE_BY!r}): print('has it', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        with pytest.raises(UserError, match="another run writes"):
            known(path)
        other.stdin.close()
    assert known(path) == set()


def test_nothing_is_kept_without_a_file_and_a_place_that_cannot_be_written_is_told(tmp_path):
    with unfinished(None, made_by={}) as kept:
        kept.add([{"id": "a"}])
        assert kept.known == {}
        kept.forget()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .* goes on from there"):
        known(tmp_path / "file" / "a.jsonl")
