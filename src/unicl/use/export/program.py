"""A graph as a program of torch.export, which torch reads without this library."""

from pathlib import Path

import torch
from torch.fx import GraphModule

from unicl.use.export.graphs import Graph


def write_program(graph: Graph, path: Path) -> tuple[str, ...]:
    """Write a ``.pt2`` file; raises `UserError` if the tower cannot be traced."""
    program = graph.traced()
    # Lines of code on this machine are nobody else's concern.
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    torch.export.save(program, str(path))
    return (path.name,)
