"""Training runs in processes of their own, which tests may kill."""

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from forks import forks
from rank_work import free_port
from tiny import tiny
from unicl.cli import main
from unicl.train.learning import Learning
from unicl.train.stages import Plateau, Stage

STEPS = 12
LIMIT = 120
"""Seconds that no run of these tests comes near; one that hangs ends here."""


def recipe():
    """A recipe with dropout, batches of all kinds and a moving average, saved every other step."""
    made = tiny("itl", steps=STEPS, save_every=2, average=0.9)
    return replace(made, text=replace(made.text, dropout=0.2), image=replace(made.image, drop_path=0.1))


def staged():
    """A recipe whose first stage ends on a plateau at step 4, with a metric that is 1 from the start."""
    made = replace(recipe(), fit=replace(recipe().fit, eval_every=2, steps=4))
    first = Stage(
        name="texts", image=Learning(part="none"), plateau=Plateau(metric="zeroshot/top5", patience=1), steps=8
    )
    return replace(made, stages=(first, Stage(name="both", optimiser="kept")))


def run(arguments, log, environment):
    """The command, with what it says in a file."""
    os.environ.update(environment)
    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    main([str(argument) for argument in arguments])


class Run:
    """One run of ``unicl train``, by one process or by several that find each other as torchrun's do."""

    def __init__(self, data, out, *, ranks=1, log, more=(), environment=None, recipe="recipe"):
        begun = (out / "config.yaml").exists()
        sources = [part for path in data for part in ("--data", path)]
        given = ["--resume"] if begun else [*sources, "--recipe", f"{__file__}:{recipe}", *more]
        context = forks()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
        self.out, self.log, self.before = out, log, inode(out / "metrics.jsonl")
        self.processes = []
        for rank in range(ranks):
            own = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank), **(environment or {})}
            arguments = ["train", "--out", out, *given]
            self.processes.append(context.Process(target=run, args=(arguments, log, own)))
            self.processes[-1].start()

    def wait(self, reached):
        """Look every millisecond until it is reached or the run has ended."""
        end = time.monotonic() + LIMIT
        while not reached() and any(p.is_alive() for p in self.processes) and time.monotonic() < end:
            time.sleep(0.001)

    def at_step(self, step):
        """Wait for the line of a step in the metrics of this run."""
        path = self.out / "metrics.jsonl"
        # A resumed run replaces the metrics of those before it.
        self.wait(lambda: inode(path) != self.before and path.read_text().count('"loss"') >= step)

    def at_save(self):
        """Wait for a checkpoint that is being written."""
        self.wait(lambda: any(self.out.glob("checkpoints/*.part")))

    def kill(self, *, rank=0, number=signal.SIGKILL):
        os.kill(self.processes[rank].pid, number)

    def end(self):
        """The exit statuses of all; None for one that had to be killed because it hangs."""
        codes = []
        for process in self.processes:
            process.join(LIMIT)
            codes.append(process.exitcode)
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        return codes

    def said(self):
        return self.log.read_text()


def inode(path):
    return path.stat().st_ino if path.exists() else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
