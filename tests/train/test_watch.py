import pytest
import torch

from forks import run_forks
from rank_work import free_port
from unicl.errors import UserError
from unicl.train.ranks import Ranks, patience
from unicl.train.watch import broken, guard, together
from watch_work import watch_work


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch")
    arguments = (free_port(), str(folder))
    run_forks(watch_work, *arguments, processes=3)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


def test_the_failure_of_one_is_raised_on_all_with_its_rank(said):
    assert [each[0] for each in said] == ["7 rank 1, saving: the disk is full"] * 3


def test_what_happens_to_all_is_the_fault_of_none(said):
    assert [each[1] for each in said] == ["7 the disk is full"] * 3
    assert [each[2] for each in said] == [""] * 3


def test_an_error_among_shared_work_ends_all_and_one_speaks(said):
    assert said[1][3] == "ValueError False a number is missing"
    for rank in (0, 2):
        reason = "rank 1 failed at step 5: ValueError: a number is missing"
        assert said[rank][3] == f"UserError True stopped at step 5: {reason}"


def test_one_process_keeps_its_errors_as_they_are():
    with pytest.raises(ValueError, match="mine"), together(ranks=Ranks(), doing="saving"):
        raise ValueError("mine")
    with pytest.raises(ValueError, match="mine"), guard(ranks=Ranks(), where=str):
        raise ValueError("mine")


@pytest.mark.parametrize("given", ["0", "soon", "-1", "inf"])
def test_a_timeout_that_is_none_is_refused(given, monkeypatch):
    monkeypatch.setenv("UNICL_TIMEOUT", given)
    with pytest.raises(UserError, match="UNICL_TIMEOUT"):
        patience()


def test_errors_of_a_lost_connection_are_told_from_others():
    assert broken(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:2450"))
    assert not broken(RuntimeError("shape '[2]' is invalid for input of size 3"))
    assert not broken(UserError("the connection is closed"))
    assert not broken(KeyboardInterrupt("connection"))
