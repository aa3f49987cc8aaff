"""The command as a user types it: exit codes, plain errors, no traceback."""

import json
import os
import subprocess
import sys

import pytest

from tiny import write_photos
from unicl.cli import main

SMALL = [
    *("--image", "test_vit", "--image-size", "32", "--width", "32", "--batch", "12", "--steps", "3"),
    *("--set", "text.layers=1", "--set", "text.dim=32", "--set", "text.heads=2"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("cli"), each=4)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    assert (
        code("train", "--recipe", "itl", "--data", data[0], "--data", f"{data[1]}?text=title", "--out", out, *SMALL)
        == 0
    )
    return out


def code(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code


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


def test_a_resumed_run_takes_flags_and_a_profile_says_what_limits_it(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert code("train", "--recipe", "clip", "--data", data[1], "--out", out, *SMALL) == 0
    assert code("train", "--resume", "--out", out, "--steps", 4, "--profile") == 2
    assert "needs 4 steps, but the run takes 1" in capsys.readouterr().err
    assert code("train", "--resume", "--out", out, "--steps", 8, "--keep-mb", 7, "--profile") == 0
    assert " limit" in capsys.readouterr().err
    assert "MFU" in (out / "profile" / "profile.md").read_text()
    assert "keep_mb: 7" in (out / "config.yaml").read_text()
    assert code("train", "--resume", "--out", out, "--lr", 1.0) == 2
    assert "recipe.optim.lr was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said", "wanted"),
    [
        (["train", "--data", "{photos}", "--out", "{out}", "--recipe", "unicll"], "did you mean 'unicl'", 2),
        (["train", "--data", "{photos}", "--out", "{out}", "--set", "optim.lrr=1"], "did you mean 'lr'", 2),
        (
            ["train", "--data", "{photos}", "--out", "{out}", "--recipe", "clip", "--class-share", "0.3"],
            "takes none",
            2,
        ),
        (["train", "--data", "{photos}", "--out", "{out}", "--stepps", "3"], "--steps", 2),
        (["train", "--data", "{photos}", "--out", "{out}", "--steps", "many"], "many", 2),
        (["train", "--data", "nothing.csv", "--out", "{out}"], "nothing.csv", 2),
        (["train", "--data", "{captions}?text=titel", "--out", "{out}"], "did you mean 'title'", 2),
        (["train", "--data", "{photos}?labels=x", "--out", "{out}"], "did you mean 'label'", 2),
        (["train", "--out", "{out}"], "no data given", 2),
        (["train", "--data", "{photos}", "--out", "{out}", "--image", "resnet5O"], "did you mean", 2),
        (["train", "--resume", "--out", "{out}"], "no run to resume", 2),
        (["evaluate", "{out}", "--data", "{photos}"], "does not exist", 2),
        (["evaluate", "{run}", "--data", "{captions}", "--task", "zeroshot"], "label", 2),
        (["search", "{run}", "{photos}"], "and a query", 2),
        (["search", "{run}", "{photos}", "red", "--out", "x.pdf"], ".pdf", 2),
        (["classify", "{run}", "nowhere/", "--names", "a,b"], "nowhere", 2),
        (["shard", "--out", "{out}"], "no data given", 2),
        (["shard", "nowhere/", "--out", "{out}"], "nowhere", 2),
        (["shard", "{photos}"], "--out", 2),
        (["shard", "{photos}", "--out", "{photos}"], "holds other things", 2),
        (["shard", "{photos}", "--out", "{out}", "--resize", "7"], "at least 8 pixels", 2),
        (["shard", "{photos}", "--out", "{out}", "--resize", "big"], "big", 2),
        (["shard", "{photos}", "--out", "{out}", "--quality", "0"], "between 1 and 100", 2),
        (["shard", "{photos}", "--out", "{out}", "--per-shards", "5"], "--per-shard", 2),
        (["shard", "{photos}", "--out", "/proc/shards"], "cannot write shards to", 1),
        (["check"], "no data given", 2),
        (["chekc", "{photos}"], "chekc", 2),
    ],
)
def test_a_mistake_is_one_plain_message_and_exit_status_two(arguments, said, wanted, data, run, tmp_path, capsys):
    names = {"photos": data[0], "captions": data[1], "out": tmp_path / "out", "run": run}
    assert code(*(a.format(**names) for a in arguments)) == wanted
    shown = capsys.readouterr().err
    assert shown.startswith("unicl: ")
    assert said in shown
    assert "Traceback" not in shown


def test_shards_are_written_taken_up_and_trained_on(data, tmp_path, capsys):
    command = ("shard", data[0], "--out", tmp_path / "shards", "--resize", 16, "--per-shard", 5, "--workers", 2)
    assert code(*command) == 0
    shown = capsys.readouterr()
    assert "12 samples of photos (class folder) to shards of 5 samples" in shown.err
    assert "12 samples in 3 shards" in shown.out
    assert code(*command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert code(*command[:-6], "--resize", 24) == 2
    assert "resize was 16 and is 24" in capsys.readouterr().err
    assert code("check", f"{tmp_path}/shards/{{0000..0002}}.tar") == 0
    assert "3 classes" in capsys.readouterr().out


def test_an_empty_table_and_text_that_is_not_utf8_are_named(tmp_path, capsys):
    (tmp_path / "empty.csv").write_bytes(b"")
    assert code("check", tmp_path / "empty.csv") == 2
    (tmp_path / "odd.csv").write_bytes("file,title\nx.jpg,红色的水果\n".encode("gb18030"))
    assert code("check", tmp_path / "odd.csv") == 2
    shown = capsys.readouterr().err
    assert "empty.csv" in shown
    assert "encoding=gb18030" in shown


def test_a_run_goes_on_with_nothing_but_its_folder(data, tmp_path):
    out = tmp_path / "run"
    assert code("train", "--recipe", "clip", "--data", data[1], "--out", out, *SMALL) == 0
    assert code("train", "--resume", "--out", out) == 0


def test_help_is_quick_to_load_and_shows_examples(capsys):
    assert code("train", "--help") == 0
    shown = capsys.readouterr().out
    assert "torchrun" in shown
    assert "--class-share" in shown


def test_python_m_unicl_is_the_command():
    environment = {**os.environ, "COLUMNS": "100"}
    ran = subprocess.run(
        [sys.executable, "-m", "unicl", "--version"], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0
    assert ran.stdout.strip()
