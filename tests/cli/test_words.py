"""The verb that labels texts, as a user types it."""

import sys

from cli_cases import code


def test_reports_to_a_table_that_check_reads(tmp_path, capsys):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "1.txt").write_text("FINDINGS: The heart is enlarged. No effusion.")
    (tmp_path / "reports" / "2.txt").write_text("")
    out = tmp_path / "findings.csv"
    options = ("--findings", "cardiomegaly,edema", "--sections", "conclusion,finding", "--by", "sentence")
    assert code("label", tmp_path / "reports", "--out", out, *options) == 0
    said = capsys.readouterr()
    assert "Cardiomegaly" in said.out
    assert "reports without a sentence, left out: 1 (2.txt)" in said.err
    assert "2 rows of 1 reports" in said.err
    assert out.read_text().splitlines()[0] == "id,text,finding:Cardiomegaly,finding:Edema"


def test_mistakes_say_what_to_do(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.txt").write_text("No edema.")
    out = tmp_path / "f.csv"
    for words, wanted in (
        (("--vocabulary", "chexpart"), "did you mean 'chexpert'"),
        (("--findings", "Edma"), "did you mean 'Edema'"),
        (("--by", "word"), "report"),
        (("--sections", ","), "no section is named"),
        (("--sections", "technique,"), None),
    ):
        assert code("label", tmp_path / "a.txt", "--out", out, *words) == (2 if wanted else 0)
        assert (wanted or "wrote") in " ".join(capsys.readouterr().err.split())
    monkeypatch.setitem(sys.modules, "medspacy", None)
    assert code("label", tmp_path / "a.txt", "--out", out) == 2
    assert "pip install 'unicl[findings]'" in capsys.readouterr().err
