"""From captions to a model that writes them."""

import csv

from cli_cases import code

SMALL = ("--image", "test_vit", "--set", "image.size=32", "--set", "words.vocab=320", "--batch", 6, "--steps", 2)


def test_a_model_that_is_trained_on_captions_writes_them_and_is_compared(data, tmp_path, capsys):
    run, table = tmp_path / "v", f"{data[1]}?text=title"
    assert code("train", "--recipe", "caption_lm", "--data", table, "--val", data[0], "--out", run, *SMALL) == 0
    assert "zeroshot/top1" in (run / "metrics.jsonl").read_text()
    out = tmp_path / "captions.csv"
    assert code("caption", run, data[0], "--beams", 2, "--most", 5, "--data", table, "--out", out) == 0
    with out.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 12
    assert set(rows[0]) == {"image", "caption", "score"}
    said = " ".join(capsys.readouterr().out.split())
    assert "captions of 12 pictures" in said
    assert "CIDEr" in said
    assert "over 12 pictures" in said
    # The pictures of a table, without naming them again.
    assert code("caption", run, "--data", table, "--nucleus", 0.9, "--seed", 3, "--most", 4) == 0
    assert "captions of 12 pictures" in capsys.readouterr().out
    assert code("evaluate", run, "--data", table, "--task", "retrieval") == 2
    assert "unicl caption MODEL --data DATA" in capsys.readouterr().err
    assert code("evaluate", run, "--data", data[0], "--task", "zeroshot") == 0
    assert "Zero-shot classification" in capsys.readouterr().out
    assert code("classify", run, data[0], "--names", "red,green") == 0


def test_mistakes_are_named(data, run, tmp_path, capsys):
    assert code("caption", run, data[0]) == 2
    assert "has no term that writes captions" in capsys.readouterr().err
    assert code("caption", run) == 2
    assert "for example: unicl caption runs/v photos/" in capsys.readouterr().err
    assert code("caption", run, data[0], "--out", tmp_path / "a.html") == 2
    assert "ends in .csv" in capsys.readouterr().err
    assert code("caption", run, "--data", data[1], "--out", data[1]) == 2
    assert "is a table that is read" in capsys.readouterr().err
    assert code("caption", run, data[0], "--tokenizer", data[1]) == 2
    assert "brings its own tokenizer" in capsys.readouterr().err
