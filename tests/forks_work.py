"""Processes that end badly; a module of its own, since each process imports it anew."""

import os
import signal
from pathlib import Path


def fall(rank, folder, times):
    with (Path(folder) / str(rank)).open("a") as file:
        file.write("started\n")
    if rank == 0 and (Path(folder) / "0").read_text().count("started") <= times:
        os.kill(os.getpid(), signal.SIGSEGV)


def refuse(rank, folder):
    (Path(folder) / str(rank)).touch(exist_ok=False)
    raise ValueError("no")
