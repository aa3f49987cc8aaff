"""Training in stages on two processes; each of these imports this module anew."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from forks import run_forks
from rank_work import free_port
from tiny import tiny
from unicl.run import Job, train
from unicl.train.learning import Learning
from unicl.train.stages import Stage


def staged(data, *, plateau=None, optimiser="fresh", size=None, drop_path=0.1):
    """Texts alone until ``plateau``, then both but for the first image blocks, three steps; a moving average."""
    recipe = tiny("itl", save_every=1, keep=100, average=0.9, eval_every=1)
    first = Stage(name="locked", image=Learning(part="none"), plateau=plateau, steps=4)
    second = Stage(name="both", image=Learning(from_block=2), steps=3, rate=0.5, optimiser=optimiser, size=size)
    recipe = replace(recipe, image=replace(recipe.image, drop_path=drop_path), stages=(first, second))
    return Job(recipe=recipe, data=data, val=data)


def work(rank, job, out, ports):
    """One of two processes: the job with whole models, and with shards."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    for kind, port in ports.items():
        os.environ["MASTER_PORT"] = port
        compute = replace(job.recipe.compute, parallel=kind)
        train(replace(job, recipe=replace(job.recipe, compute=compute)), Path(out) / kind)


def two_processes(job, out):
    """The job on two processes, in the folders "ddp" and "fsdp"."""
    run_forks(work, job, str(out), {kind: free_port() for kind in ("ddp", "fsdp")}, processes=2)
