"""What two processes do in the test of a profile: a short run of the command's own function."""

import os

import torch

from tiny import tiny
from unicl.run import Job, train


def profile_work(rank, data, out, port):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    train(Job(recipe=tiny("clip", steps=5), data=data), out, device="cpu", profile=True)
