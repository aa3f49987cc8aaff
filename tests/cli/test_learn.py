"""check, train, evaluate and shard as a user types them."""

from pathlib import Path

from chinese_files import write_lmdb, write_pair
from cli_cases import SMALL, code
from tiny import write_photos


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


def test_alike_texts_rated_pairs_composed_queries_and_languages_are_measured(data, run, tmp_path, capsys):
    (tmp_path / "sts.csv").write_text("text1,text2,agg_score\na red square,a blue square,1\nred,blue,2\nred,red,5\n")
    (tmp_path / "q.csv").write_text("image,text,sign,target\nphotos/red/0.png,blue,+,photos/blue/0.png\n")
    rows = (Path(data[1]).read_text()).splitlines()
    table = Path(data[1]).with_name("languages.csv")
    table.write_text(
        "\n".join([rows[0] + ",language", *(f"{row},{'en' if k % 2 else 'de'}" for k, row in enumerate(rows[1:]))])
    )
    tasks = [word for name in ("similarity", "composed", "languages", "i2t") for word in ("--task", name)]
    given = ("--rated", tmp_path / "sts.csv", "--queries", tmp_path / "q.csv", "--language", "language")
    assert code("evaluate", run, "--data", table, *tasks, *given, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    for words in ("Spearman over draws", "composed, recall@1", "de: mean recall", "Image to text"):
        assert words in shown
    assert code("evaluate", run, "--data", table, "--language", "lang", "--out", tmp_path / "out") == 2
    assert "it has 'file', 'title', 'language'" in " ".join(capsys.readouterr().err.split())


def test_predictions_are_written_and_scored(run, tmp_path, capsys):
    tsv, out = write_pair(tmp_path, "muge_valid", images=".tsv"), tmp_path / "out"
    assert code("evaluate", run, "--data", tsv, "--task", "retrieval", "--predictions", "--out", out) == 0
    assert "The 10 best answers" in capsys.readouterr().out
    assert code("evaluate", out / "muge_valid_predictions.jsonl", "--data", tsv, "--out", tmp_path / "scored") == 0
    assert "text to image, mean recall" in capsys.readouterr().out
    assert (tmp_path / "scored" / "evaluation.json").is_file()
    assert code("evaluate", out / "nowhere.jsonl", "--data", tsv) == 2


def test_chinese_data_are_checked_and_broken_base64_is_listed(tmp_path, capsys):
    tsv = write_pair(tmp_path, "muge_train", images=".tsv")
    with tsv.open("a", encoding="utf-8") as file:
        file.write("999\tbm90IGFuIGltYWdlIGF0IGFsbCwgb25seSBzb21lIHdvcmRz\n")
    assert code("check", tsv) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "image = muge_train.tsv, text = muge_train_texts.jsonl" in shown
    assert "1 image cannot be read (1 x not an image)" in shown
    assert "(chinese)" in shown
    split = write_lmdb(tmp_path / "lmdb")
    assert code("shard", split, "--out", tmp_path / "shards", "--workers", 1) == 0
    (split / "pairs").rename(tmp_path / "pairs")
    assert code("check", split) == 2
    assert "no pairs/, the index that says which text belongs to which image" in capsys.readouterr().err


def test_precision_findings_queries_and_ensembles_are_asked_for_by_flags(run, tmp_path, capsys):
    (tmp_path / "query.csv").write_text("Variable,Text\nred,a red square\nblue,something blue\n")
    _, table = write_photos(tmp_path, each=4, findings=True)
    single = f"{table}?findings=red,green,blue&only=4&seed=1"
    given = ("--query-data", f"{tmp_path / 'query.csv'}?label=Variable", "--ensemble", "best", "--prompts", "en-short")
    tasks = ("--task", "precision", "--task", "findings", "--task", "zeroshot")
    assert code("evaluate", run, "--data", single, *tasks, *given, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    for words in ("sentence to image, precision@10", "by name: red", "probe, 100% of labels: mean", "the best of"):
        assert words in shown
    assert code("evaluate", run, "--data", f"{table}?findings=red,green,blue&only=400", "--task", "precision") == 2
    assert "(400 of each wanted): red" in " ".join(capsys.readouterr().err.split())
