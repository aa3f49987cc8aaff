"""Concepts of data, as a user asks for them."""

import json

from cli_cases import code


def test_captions_and_classes_to_a_table_files_and_a_page(data, tmp_path, capsys):
    out = tmp_path / "concepts"
    assert code("concepts", data[0], f"{data[1]}?text=title", "--out", out, "--least", 2, "--workers", 1) == 0
    assert "most:" in capsys.readouterr().out
    facts = json.loads((out / "concepts.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in facts["sources"]][-1] == "together"
    assert facts["sources"][-1]["concepts"] > 0
    assert (out / "concepts.html").is_file()
    assert code("concepts", data[1], "--out", out, "--least", 2) == 0


def test_mistakes_are_told_in_plain_words(data, tmp_path, capsys):
    assert code("concepts") == 2
    assert "unicl concepts captions.csv" in capsys.readouterr().err
    assert code("concepts", data[1], "--least", 0) == 2
    assert "1 or more" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert code("concepts", data[1], "--out", tmp_path / "file") == 2
    assert "another" in capsys.readouterr().err
