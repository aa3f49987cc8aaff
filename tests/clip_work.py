"""What two processes do in the tests of clipping and of optimiser states over sharded weights."""

import os

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from unicl.train.optim import OptimSettings, adamw, clip, take_step
from unicl.train.ranks import start

ROWS = torch.arange(24.0).view(4, 6) / 10


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1024))
    model.scale = nn.Parameter(torch.tensor(2.0))
    return model


def loss(model):
    return model.scale * model(ROWS).square().sum()


def states(model, kind):
    """Weights after three steps with an optimiser that keeps its states as ``kind``."""
    optimiser = adamw(model, OptimSettings(lr=0.01, states=kind))
    for step in range(3):
        optimiser.zero_grad(set_to_none=True)
        loss(model).backward()
        take_step(optimiser, rate=0.01, seed=step)
    return {name: _whole(p.detach()) for name, p in model.named_parameters()}


def clip_work(rank, folder, port, kinds):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    with start("cpu"):
        found = {}
        model = _sharded()
        loss(model).backward()
        found["norm"] = clip(model.parameters(), norm=0.5)
        found["after"] = clip(model.parameters(), norm=None)
        found["grads"] = {name: _whole(p.grad) for name, p in model.named_parameters()}
        found["states"] = {kind: states(_sharded(), kind) for kind in kinds}
        torch.save(found, f"{folder}/{rank}.pt")


def _sharded():
    model = net()
    scale, model.scale = model.scale, None
    for part in (model[0], model[2]):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
        part.set_force_sum_reduction_for_comms(True)
    model.scale = scale
    return model


def _whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value
