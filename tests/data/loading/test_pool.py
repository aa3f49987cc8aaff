"""Processes that share work."""

import os
import signal
import subprocess
import sys
import time

import pytest

from unicl.data.loading.pool import pool
from unicl.errors import UserError

PARENT = """
import os, time
from unicl.data.loading.pool import pool
if __name__ == "__main__":
    with pool(1) as processes:
        print(processes.submit(os.getpid).result(), flush=True)
        processes.submit(time.sleep, 600).result()
"""


def end_itself():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_is_ended_is_an_error_with_words():
    def share():
        with pool(1) as processes:
            assert processes.submit(abs, -3).result() == 3
            processes.submit(end_itself).result()

    with pytest.raises(UserError, match="a process that shared the work was ended from outside"):
        share()


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_it(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not is_running(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the child is still there")


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # One that has ended and that nobody asked after is no longer running.
    with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"
