"""Which part of a step is running, told by hooks on the model and by the loop, and the clock of every part."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.profiler import record_function

from unicl.model import TwoTowers
from unicl.space import Embedding
from unicl.train.profiling.spans import Span

Part = Literal["input", "image tower", "text tower", "objective", "backward", "communication", "optimiser", "rest"]


class Timeline:
    """One part runs at any time; beginning another one ends it.

    The objective's own backward pass lasts from its loss to the first gradient of an embedding, or to the next pass of
    a tower where embeddings are cached, and counts as the objective's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device: Final = device
        self.spans: list[tuple[Part, Span]] = []
        self.current: Part = "rest"
        self.since = time.time()
        self.in_objective = False
        self.hooks: list[Any] = []
        self.before: list[Part] = []
        self.labels: list[Any] = []

    def begin(self) -> None:
        """Start the clock, and forget what was before."""
        self._wait()
        self.spans, self.since = [], time.time()

    def switch(self, part: Part) -> Part:
        """Begin a part; returns the one that this ended."""
        self._wait()
        now, ended = time.time(), self.current
        self.spans.append((ended, (self.since, now)))
        self.current, self.since, self.in_objective = part, now, False
        return ended

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """A part to the end of the block, then again what was."""
        before = self.switch(part)
        try:
            with record_function(part):
                yield
        finally:
            self.switch(before)

    def watch(self, model: TwoTowers) -> None:
        """Hook into the towers and the objective of a model."""
        self._watch(model.image, "image tower")
        if model.text is not None:
            self._watch(model.text, "text tower")
        self._watch(model.objective, "objective")

    def leave(self) -> None:
        """Take the hooks away."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def _watch(self, module: nn.Module, part: Part) -> None:
        def enter(_: nn.Module, __: Any) -> None:
            cached = self.in_objective
            self.before.append(self.switch(part))
            if cached:
                self.before[-1] = "backward"
            self.labels.append(record_function(part))
            self.labels[-1].__enter__()

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            self.labels.pop().__exit__(None, None, None)
            before = self.before.pop()
            if isinstance(output, Embedding):
                self.switch(before)
                self._await(output)
            else:
                self.in_objective = True

        # The outermost of all hooks, so that what others do around the module counts as its own.
        self.hooks.append(module.register_forward_pre_hook(enter, prepend=True))
        self.hooks.append(module.register_forward_hook(leave))

    def _await(self, embedding: Embedding) -> None:
        def arrived(_: Any) -> None:
            if self.in_objective:
                self.switch("backward")

        rows: Any
        for rows in (embedding.whole, embedding.features):
            if rows.requires_grad:
                rows.register_hook(arrived)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
