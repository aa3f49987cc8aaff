"""What the processes of the tests of ranks do; a module of its own, since each process imports it anew."""

import os
import socket

import torch

from tiny import hide_of, tiny
from unicl.data.collate import class_texts
from unicl.data.quarantine import Quarantine
from unicl.data.sources import load_all
from unicl.data.stream import Place, Stream
from unicl.lookup import names
from unicl.run import build_model
from unicl.towers.text import build_tokenizer
from unicl.train.compute import ComputeSettings
from unicl.train.ranks import Ranks, start
from unicl.train.step import plain_step

KINDS = ("cross_entropy", "filip", "gloria", "icmlm", "itl", "medclip", "siglip", "supcon", "virtex")
"""A recipe of each kind of term, where all of them would say the same again."""
RINGED = ("filip", "itl", "medclip", "siglip")
"""Of those whose scores travel, one of each engine."""


def model_and_batch(name, data, *, rank=0, ranks=1):
    """A recipe's model in training, and one process's part of a batch of 13."""
    recipe = tiny(name, batch=13)
    sources = load_all(data)
    texts = class_texts(recipe.data.prompts)
    captions = [caption for source in sources for sample in source.samples for caption in sample.captions]
    read = recipe.text or recipe.words
    tokenizer = None if read is None else build_tokenizer(read, texts=[*captions, "red green blue photo"])
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
        hide=hide_of(recipe, sources, tokenizer),
    )
    return model, stream.batch(1)


def step(name, data, *, rank=0, ranks=1, group=None, compute=ComputeSettings()):
    """Loss and gradients of one rank's part of a step, in float64."""
    model, batch = model_and_batch(name, data, rank=rank, ranks=ranks)
    result = plain_step(model, batch, ranks=group or Ranks(), precision="fp32", compute=compute)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return result.loss.item(), gradients


def step_work(rank, data, folder, port, ranks):
    """Every recipe's step on one of several processes, gathered and in a ring."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    torch.set_num_threads(1)
    with start("cpu") as group:
        results = {
            exchange: {
                name: step(
                    name,
                    data,
                    rank=rank,
                    ranks=ranks,
                    group=group,
                    compute=ComputeSettings(exchange=exchange, keep_mb=0),
                )
                for name in (names() if ranks > 2 else KINDS if exchange == "gather" else RINGED)
            }
            for exchange in ("gather", "ring")
        }
        torch.save(results, f"{folder}/{rank}.pt")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
