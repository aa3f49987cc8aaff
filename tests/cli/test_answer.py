"""From data to a model to answers."""

import json

from cli_cases import SMALL, code


def test_data_to_model_to_report_to_search(data, run, tmp_path, capsys):
    assert code("check", *data, "--json", "--html", tmp_path / "check.html") == 0
    assert json.loads(capsys.readouterr().out)
    assert "data:image" in (tmp_path / "check.html").read_text(encoding="utf-8")
    tasks = ["--task", "zeroshot", "--task", "retrieval", "--task", "probe"]
    assert code("evaluate", run, "--data", data[0], "--data", data[1], *tasks, "--out", tmp_path / "report") == 0
    assert {p.suffix for p in (tmp_path / "report").iterdir()} >= {".json", ".md", ".html"}
    assert code("search", run, data[0], "a red square", "--out", tmp_path / "sheet.html") == 0
    assert code("classify", run, data[0], "--names", "red,green,blue", "--out", tmp_path / "classes.png") == 0
    assert code("embed", run, data[0], "--out", tmp_path / "vectors") == 0
    assert code("search", run, tmp_path / "vectors", "green", "--top", 3) == 0
    assert (tmp_path / "sheet.html").is_file()
    assert (tmp_path / "classes.png").is_file()
    assert "12 vectors of 32" in capsys.readouterr().out


def test_a_model_of_parts_keeps_them_and_ranks_by_them(data, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "vectors"
    sources = ("--data", data[0], "--data", f"{data[1]}?text=title")
    assert code("train", "--recipe", "filip", *sources, "--out", run, *SMALL) == 0
    assert code("embed", run, data[0], "--out", out) == 0
    assert "parts of 32 each (" in capsys.readouterr().out
    assert code("search", run, out, "red", "--top", 3, "--rerank", 5, "--out", tmp_path / "a.jsonl") == 0
    assert "the 5 nearest ranked by tokenwise" in capsys.readouterr().out
    assert {json.loads(line)["by"] for line in (tmp_path / "a.jsonl").read_text().splitlines()} == {"tokenwise"}
    assert code("search", run, out, "red", "--rerank", 0) == 0
    assert "ranked by whole vectors, as asked" in capsys.readouterr().out
    assert code("embed", run, data[0], "--out", tmp_path / "none", "--no-parts") == 0
    assert "without parts" in capsys.readouterr().out
    assert code("search", run, tmp_path / "none", "red") == 0
    assert "the folder keeps no parts" in " ".join(capsys.readouterr().out.split())
