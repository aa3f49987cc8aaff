"""What the processes of the tests of ranks do; a module of its own, since each process imports it anew."""

import os
import socket

import torch

from tiny import tiny
from unicl.data.collate import class_texts
from unicl.data.quarantine import Quarantine
from unicl.data.sources import load_all
from unicl.data.stream import Place, Stream
from unicl.lookup import names
from unicl.run import build_model
from unicl.space import Columns, Embedding, Keys
from unicl.towers.text import build_tokenizer
from unicl.train.ranks import Ranks, average_gradients, gather, gather_columns, gather_objects, start
from unicl.train.step import plain_step

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


def step(name, data, *, rank=0, ranks=1, group=None):
    """Loss and gradients of one rank's part of a step, in float64."""
    recipe = tiny(name, batch=13)
    sources = load_all(data)
    texts = class_texts(recipe.data.prompts)
    captions = [caption for source in sources for sample in source.samples for caption in sample.captions]
    tokenizer = None if recipe.text is None else build_tokenizer(recipe.text, texts=[*captions, "red green blue photo"])
    model = build_model(recipe, sources, tokenizer=tokenizer).double().train()
    stream = Stream(
        sources,
        recipe.data,
        texts=texts,
        tokenizer=tokenizer,
        size=32,
        seed=3,
        quarantine=Quarantine(limit=0),
        place=Place(rank=rank, ranks=ranks),
    )
    result = plain_step(model, stream.batch(1), ranks=group or Ranks(), precision="fp32")
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return result.loss.item(), gradients


def step_work(rank, data, folder, port):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    with start("cpu") as group:
        torch.save({name: step(name, data, rank=rank, ranks=2, group=group) for name in names()}, f"{folder}/{rank}.pt")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
