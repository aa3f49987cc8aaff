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
from unicl.towers.text import build_tokenizer
from unicl.train.ranks import Ranks, start
from unicl.train.step import plain_step


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
