"""Steps of a model with adapters, on one process or on several; each of these imports this module anew."""

import os
from pathlib import Path

import torch
from torch import nn

from cached_work import made
from unicl.data.stream import Place
from unicl.train.cached import cached_step
from unicl.train.optim import OptimSettings, adamw, take_step
from unicl.train.parallel import Parallel, gathered
from unicl.train.ranks import Ranks, start
from unicl.train.state import whole_state
from unicl.train.step import plain_step

RANK = {"lora": 2}


def adapted(data, *, place=Place(), tower="test_vit", image=RANK, text=RANK):
    """A model in float64 whose adapters already do something, and its batch."""
    model, batch = made("itl", data, place=place, tower=tower, image=image, text=text)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model, batch


def stepped(data, *, ranks=Ranks(), parallel="ddp", chunk=None):
    """The loss and every gradient of a step, and the state after it."""
    model, batch = adapted(data, place=Place(rank=ranks.rank, ranks=ranks.size))
    shared = Parallel(model, ranks=ranks, parallel=parallel, bucket_mb=0.01)
    optimiser = adamw(model, OptimSettings(lr=1e-2))
    given = {"ranks": ranks, "precision": "fp32", "sync": shared.sync}
    result = plain_step(model, batch, **given) if chunk is None else cached_step(model, batch, **given, chunk=chunk)
    shared.finish()
    found = {f"gradient {n}": gathered(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None}
    take_step(optimiser, rate=1e-2, seed=0)
    shared.close()
    state = {f"after {n}": value.clone() for n, value in whole_state(model.state_dict(), keep=True).items()}
    return {"loss": result.loss, **found, **state}


def step_work(rank, data, folder, port):
    """The same step on two processes, each way that they share a model."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    with start("cpu") as ranks:
        found = {mode: stepped(data, ranks=ranks, parallel=mode) for mode in ("ddp", "fsdp")}
        found["chunks"] = stepped(data, ranks=ranks, chunk=3)
        torch.save(found, Path(folder) / f"{rank}.pt")
