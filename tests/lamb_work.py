"""What two processes do in the test of LAMB over sharded weights."""

import os

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from unicl.train.lamb import Lamb
from unicl.train.ranks import start


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 33)).double()


def trained(model):
    groups = [{"params": [p for p in model.parameters() if (p.ndim > 1) == decays]} for decays in (True, False)]
    groups[0]["weight_decay"] = 0.03
    optimiser = Lamb(groups, lr=0.05, eps=1e-4)
    for _ in range(3):
        optimiser.zero_grad(set_to_none=True)
        model(torch.arange(24.0, dtype=torch.float64).view(4, 6) / 10).square().sum().backward()
        optimiser.step()
    whole = {name: p.detach() for name, p in model.named_parameters()}
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in whole.items()}


def shard_work(rank, folder, port):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    with start("cpu"):
        model = net()
        for part in (model[0], model[2]):
            fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
            part.set_force_sum_reduction_for_comms(True)
        torch.save(trained(model), f"{folder}/{rank}.pt")
