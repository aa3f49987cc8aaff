"""Processes that start at once: all are forked from one that has imported everything."""

import os
import warnings
from multiprocessing import get_context
from pathlib import Path

# What a run imports late is imported here once for all.
import torch
import torch._dynamo
import transformers.models.clip.modeling_clip  # noqa: F401
from torch.multiprocessing.spawn import ProcessExitedException

import unicl.run
import unicl.train.loop  # noqa: F401


def forks():
    """The context to start them with; its name is "forkserver"."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["forks"])
    # The process that all are forked from finds this module by its environment only.
    here = str(Path(__file__).parent)
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", here)]
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *given])
    return context


def run_forks(work, *arguments, processes):
    """Call ``work(number, *arguments)`` in so many processes and wait for all; raises what one of them raises.

    A process that a signal ends is an exception to its fellows as well, and all are started once more: a thread of gloo
    was seen to die in malloc, once in some thousand groups and in none of many under valgrind and address sanitizer.
    """
    forks()
    for last in (False, True):
        try:
            torch.multiprocessing.start_processes(work, args=arguments, nprocs=processes, start_method="forkserver")
            return
        except ProcessExitedException as error:
            if last or error.signal_name is None:
                raise
            warnings.warn(f"started again: {error}", stacklevel=2)
