"""What two processes do in the test of what a contrast takes from others."""

import os
from typing import get_args

import torch
from torch import nn
from torch.nn.functional import normalize

from unicl.objective.peers import ALONE, Gather
from unicl.objective.terms import ContrastSettings, Objective
from unicl.space import Columns, Embedding, Keys
from unicl.train.ranks import average_gradients, start

ROWS = (3, 4)
GATHERS = get_args(Gather)


def contrasted(gather, place, *, peers=ALONE):
    """The loss of some of seven pairs, and the gradients of two matrices that encode them and of the scale."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2, sum(ROWS), 5, dtype=torch.float64, generator=generator)
    towers = [nn.Parameter(torch.randn(5, 6, dtype=torch.float64, generator=generator)) for _ in range(2)]
    objective = Objective([ContrastSettings(gather=gather)], features=1).double()
    wholes = [normalize(rows[place] @ tower, dim=-1) for rows, tower in zip(raw, towers, strict=True)]
    images, texts = (Embedding(whole=whole, features=whole[:, :1]) for whole in wholes)
    keys = Keys.single(torch.arange(1, sum(ROWS) + 1)[place])
    counts = torch.ones(len(wholes[0]), dtype=torch.float64)
    columns = Columns(images=images, image_keys=keys, texts=texts, text_keys=keys, text_counts=counts)
    loss, _ = objective(columns, peers=peers)
    loss.backward()
    learned = [*towers, *objective.parameters()]
    if peers is not ALONE:
        average_gradients(learned, ranks=peers)
    return [loss.detach(), *(parameter.grad for parameter in learned)]


def apart_work(rank, port, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    place = slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
    with start("cpu") as ranks:
        torch.save({gather: contrasted(gather, place, peers=ranks) for gather in GATHERS}, f"{folder}/{rank}.pt")
