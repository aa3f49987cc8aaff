"""finetune as a user types it."""

from cli_cases import code

SHORT = ("--steps", 2, "--batch", 6)


def test_a_run_is_fine_tuned_measured_resumed_and_used(run, data, tmp_path, capsys):
    out = tmp_path / "ft"
    command = ("finetune", run, "--data", data[0], "--val", data[0], "--out", out, *SHORT)
    assert code(*command, "--loss", "cross_entropy", "--wise", 0.2, "--wise", 0.8) == 0
    shown = capsys.readouterr()
    assert "the image tower and a layer over the labels by cross-entropy, from their texts" in shown.err
    assert "zero-shot, before" in shown.out
    assert "fine-tuned" in shown.out
    assert (out / "wise-0.2").is_dir()
    assert (out / "wise-0.8").is_dir()
    assert code("finetune", "--resume", "--out", out, "--steps", 3) == 0
    assert code("classify", out / "wise-0.8", data[0], "--names", "red,green") == 0


def test_what_does_not_go_together_is_said_before_any_work(run, data, tmp_path, capsys):
    out = tmp_path / "ft"
    assert code("finetune", "--out", out) == 2
    assert code("finetune", run, "--out", out) == 2
    assert code("finetune", run, "--resume", "--out", out) == 2
    assert code("finetune", "--resume", "--out", out, "--val", data[0], "--layer-decay", 0.5) == 2
    said = capsys.readouterr().err
    assert "leave out model" in said
    assert "leave out --val, --layer-decay" in said
    assert code("finetune", run, "--data", data[0], "--out", out, "--wise", 3) == 2
    assert code("finetune", run, "--data", data[0], "--out", out, "--layer-decay", 7) == 2
    assert "decay=7 is no factor" in capsys.readouterr().err
    assert code("finetune", run, "--data", data[0], "--out", out, "--loss", "unicle") == 2
    assert not out.exists()
