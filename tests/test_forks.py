import pytest
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from forks import run_forks
from forks_work import fall, refuse


def test_processes_of_which_one_falls_are_started_once_more(tmp_path):
    with pytest.warns(UserWarning, match="started again: process 0 terminated with signal SIGSEGV"):
        run_forks(fall, str(tmp_path), 1, processes=1)
    assert (tmp_path / "0").read_text() == "started\n" * 2
    with pytest.warns(UserWarning, match="again"), pytest.raises(ProcessExitedException, match="SIGSEGV"):
        run_forks(fall, str(tmp_path), 4, processes=1)


def test_an_error_is_raised_at_once(tmp_path):
    with pytest.raises(ProcessRaisedException, match="no"):
        run_forks(refuse, str(tmp_path), processes=1)
