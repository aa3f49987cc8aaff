"""What the processes of the test of shared failures do; a module of its own, since each process imports it anew."""

import os

import torch
import torch.distributed as dist

from unicl.errors import UserError
from unicl.train.ranks import start
from unicl.train.watch import guard, together


def watch_work(rank, port, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    said = []
    with start("cpu") as ranks:
        for failing in ((1,), (0, 1, 2), ()):
            try:
                with together(ranks=ranks, doing="saving"):
                    if rank in failing:
                        raise UserError("the disk is full", code=7)
                said.append("")
            except UserError as error:
                said.append(f"{error.code} {error}")
        try:
            with guard(ranks=ranks, where=lambda: "at step 5"):
                if rank == 1:
                    raise ValueError("a number is missing")
                dist.all_reduce(torch.ones(1))
        except (UserError, ValueError) as error:
            said.append(f"{type(error).__name__} {getattr(error, 'silent', False)} {error}")
        torch.save(said, f"{folder}/{rank}.pt")
