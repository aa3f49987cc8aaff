"""What the processes of the test of gathering do; apart from the rest, so that each process starts quickly."""

import os

import torch

from unicl.space import Columns, Embedding, Keys
from unicl.train.ranks import average_gradients, gather, gather_columns, gather_objects, start

ROWS = (3, 0, 2)
"""Rows of each of three processes: one has none."""


def columns(rows, *, first):
    whole = torch.arange(first, first + rows, dtype=torch.float64)[:, None] * torch.ones(1, 4, dtype=torch.float64)
    embedding = Embedding(whole=whole, features=whole * 2)
    keys = Keys.single(torch.arange(first, first + rows) + 100)
    return Columns(
        images=embedding, image_keys=keys, texts=embedding, text_keys=keys, text_counts=torch.ones(rows).double()
    )


def gather_work(rank, port, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    with start("cpu") as ranks:
        own = columns(ROWS[rank], first=sum(ROWS[:rank]))
        every = gather_columns(own, ranks=ranks, features=rank >= 0)
        weight = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
        unused = torch.nn.Parameter(torch.zeros(2))
        made = gather(own.images.whole @ weight, ranks=ranks)
        (made.square().sum() * weight.sum()).backward()
        parameters = [torch.nn.Parameter(weight.detach()), unused]
        parameters[0].grad = weight.grad
        average_gradients(parameters, ranks=ranks)
        result = {
            "whole": every.images.whole,
            "features": every.images.features,
            "rows": every.image_keys.rows,
            "keys": every.image_keys.keys,
            "gradient": parameters[0].grad,
            "unused": unused.grad,
            "any": torch.tensor([ranks.any(rank == 1), ranks.any(False)]),
            "objects": torch.tensor(gather_objects(rank, ranks=ranks)),
        }
        torch.save(result, f"{folder}/{rank}.pt")
