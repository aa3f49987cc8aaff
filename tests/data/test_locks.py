import subprocess
import sys

import pytest

from unicl.data.locks import alone

HOLD = """
import sys
from pathlib import Path
from unicl.data.locks import alone

with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_and_free_after_its_death(tmp_path):
    folder = tmp_path / "new" / "folder"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), alone(folder, wait=False):
            pass
        holder.kill()
        holder.wait()
        with alone(folder, wait=False):
            assert folder.is_dir()
