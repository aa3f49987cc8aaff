import pytest

from unicl.errors import UserError
from unicl.train.board import Board


def test_lines_are_printed_where_nobody_watches_a_bar(tmp_path, capsys):
    with Board(3, start=0, visible=True, out=tmp_path) as board:
        for step in (1, 2, 3):
            board.step(step, numbers={"loss": 1.5, "samples/s": 120.0})
        board.evaluated(3, metrics={"zeroshot/top1": 0.5}, best=True)
    shown = capsys.readouterr().err
    assert "step 1/3" in shown
    assert "step 3/3" in shown
    assert "loss 1.5" in shown
    assert "best so far" in shown


def test_other_ranks_are_silent(tmp_path, capsys):
    with Board(1, start=0, visible=False, out=tmp_path, trackers=("tensorboard",)) as board:
        board.step(1, numbers={"loss": 1.0})
        board.say("hello")
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_gets_the_numbers(tmp_path):
    with Board(1, start=0, visible=True, out=tmp_path, trackers=("tensorboard",)) as board:
        board.step(1, numbers={"loss": 1.0})
    assert list((tmp_path / "tensorboard").iterdir())


def test_an_unknown_tracker_suggests_a_near_one(tmp_path):
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        Board(1, start=0, visible=True, out=tmp_path, trackers=("tensorbord",))


def test_a_stage_has_its_name_on_the_bar(tmp_path):
    with Board(1, start=0, visible=False, out=tmp_path, title="stage 1 of 2 (texts)") as board:
        assert board.bar.columns[0].text_format == "stage 1 of 2 (texts)"
