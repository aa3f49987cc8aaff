"""check, train, evaluate and shard as a user types them."""

from cli_cases import SMALL, code


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
