"""Exit codes, plain errors, no traceback."""

import os
import subprocess
import sys

import pytest

from cli_cases import code


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
        (["evaluate", "{out}", "--data", "{photos}"], "no model at", 2),
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
