"""What the processes of the test of evaluation during training do; each process imports it anew."""

import os

import torch

from evaluate_oracles import parts_model
from unicl.data.sources import load_all
from unicl.evaluate.during import evaluator
from unicl.train.ranks import start


def numbers(data, ensemble, standardise, ranks):
    """The numbers of a model of parts on these sources."""
    model = parts_model(ensemble, standardise=standardise)
    return evaluator(load_all(data), prompts="en-short", ranks=ranks)(model)


def work(rank, data, folder, port, several):
    """Each ensemble's numbers on one of several processes, into a file of the folder."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(several), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    torch.set_num_threads(1)
    with start("cpu") as group:
        found = {each: numbers(data, *each, group) for each in (("similarities", False), ("best", True))}
    torch.save(found, folder / f"{rank}.pt")
