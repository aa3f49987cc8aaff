"""One model on several processes: a whole copy on each ("ddp"), or a part of each tower on each ("fsdp").

Why not `DistributedDataParallel`: it learns in the forward pass of one wrapped module which parameters will get a
gradient. Here the objective's scales and head are used outside of the towers, a cached step runs a tower many times
before and during the backward pass, and a process may have no texts at all; with ``find_unused_parameters`` the scales
would count as unused, without it the processes would wait for each other. `Parallel` sends buckets of gradients from
hooks as DDP does, but decides at the end of the step what is missing, which is exact in all of these cases.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from unicl.model import TwoTowers
from unicl.space import Embedding
from unicl.towers.image import ImageTower
from unicl.towers.text import TextTower
from unicl.train.ranks import Ranks

_LISTS = ("blocks", "layers", "layer")
"""What timm and transformers call the list of a tower's blocks."""


class Parallel:
    """Makes the model of each process part of one model; every gradient becomes the mean over all processes.

    A gradient that is missing on some processes counts as zero there; one that is missing on all stays missing.
    On one process it does nothing. Call it before the optimiser and the moving average are made.
    """

    def __init__(
        self,
        model: TwoTowers,
        *,
        ranks: Ranks,
        parallel: Literal["ddp", "fsdp"] = "ddp",
        bucket_mb: float = 25.0,
    ) -> None:
        self.model, self.ranks = model, ranks
        self.towers: list[_Shards] = []
        self.buckets: list[_Bucket] = []
        self.sending = False
        self.hooks: list[Any] = []
        self.bucket_mb = bucket_mb
        if ranks.size > 1 and parallel == "fsdp":
            self.towers = [_shard(tower, ranks) for tower in (model.image, model.text) if tower is not None]
        self.follow()

    def follow(self) -> None:
        """Average the gradients of what learns now; to be called on all processes when that has changed."""
        self.close()
        self.buckets = []
        if self.ranks.size == 1:
            return
        model = self.model
        outside = set(model.objective.parameters())
        # The backward pass reaches the last layers first. The objective goes last of all: its gradients come while
        # it may still exchange rows, and messages must have one order on all processes.
        learning = [p for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        towers = [p for p in reversed(learning) if p not in outside]
        self.buckets = _buckets(towers, size=self.bucket_mb * 2**20)
        for bucket in self.buckets:
            for parameter in bucket.parameters:
                self.hooks.append(_hook(parameter, bucket.arrived(self._arrived)))
        self.buckets += _buckets([p for p in learning if p in outside], size=float("inf"))

    @contextmanager
    def sync(self, last: bool) -> Iterator[None]:
        """Around a backward pass: ``last`` if it is the last one of the step for the parameters that it reaches.

        Gradients then travel while the pass is still running; in other passes they only add up.
        """
        for tower in self.towers:
            tower.module.set_requires_gradient_sync(last)
        self.sending = last
        try:
            yield
        finally:
            self.sending = False

    def finish(self) -> None:
        """Send what has not been sent, wait for all, and leave the mean of each gradient in ``.grad``."""
        for bucket in self.buckets:
            bucket.send()
        for bucket in self.buckets:
            bucket.receive(self.ranks.size)
        for tower in self.towers:
            tower.finish(self.ranks)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Every process holds all weights, so that each may run the towers as often as it likes."""
        shards = [(tower.module, m) for tower in self.towers for m in _sharded(tower.module)]
        for _, module in shards:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for tower, module in shards:
                # A whole tower's own weights stay from the forward to the backward pass.
                module.set_reshard_after_forward(module is not tower, recurse=False)
                module.reshard()

    def close(self) -> None:
        """Take the hooks off the model's parameters."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def _arrived(self, reached: "_Bucket", parameter: nn.Parameter) -> None:
        """Send the buckets that are full, strictly in order, which is what makes all processes send alike."""
        if self.sending:
            # In an earlier pass the gradient was not whole yet.
            reached.waiting.add(id(parameter))
            for bucket in self.buckets:
                if not bucket.sent and not bucket.full:
                    break
                bucket.send()


def share_buffers(model: nn.Module, *, ranks: Ranks) -> None:
    """Give all processes the buffers of the first, such as the statistics of batch norm, which each gathers alone."""
    if ranks.size == 1:
        return
    floats = [b for b in model.buffers() if b.is_floating_point()]
    for dtype in sorted({b.dtype for b in floats}, key=str):
        same = [b for b in floats if b.dtype == dtype]
        flat = torch.cat([b.reshape(-1) for b in same])
        dist.broadcast(flat, src=0)
        for buffer, part in zip(same, torch.split(flat, [b.numel() for b in same]), strict=True):
            buffer.copy_(part.view_as(buffer))


def gathered(value: Tensor) -> Tensor:
    """All of a tensor of which each process holds a part; to be called on all of them."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def place(whole: Tensor, *, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut and placed as ``like`` is."""
    if not isinstance(like, DTensor):
        return whole
    moved = whole.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


@dataclass(slots=True, kw_only=True)
class _Bucket:
    """Parameters of one dtype whose gradients travel in one message, each with a 1 if it is there at all."""

    parameters: list[nn.Parameter] = field(default_factory=list)
    waiting: set[int] = field(default_factory=set)
    flat: Tensor | None = None
    work: Any = None

    @property
    def sent(self) -> bool:
        return self.work is not None

    @property
    def full(self) -> bool:
        return len(self.waiting) == len(self.parameters)

    def arrived(self, then: Callable[["_Bucket", nn.Parameter], None]) -> Callable[[nn.Parameter], None]:
        def hook(parameter: nn.Parameter) -> None:
            if self.sent:
                raise RuntimeError("a gradient came after its bucket was sent: only the last pass may be in sync(True)")
            then(self, parameter)

        return hook

    def send(self) -> None:
        """Start the sum over all processes, once a step."""
        if self.sent:
            return
        grads = [p.grad for p in self.parameters]
        there = self.parameters[0].new_ones(len(grads))
        for k, grad in enumerate(grads):
            if grad is None:
                there[k] = 0
        both = zip(self.parameters, grads, strict=True)
        parts = [p.new_zeros(p.numel()) if g is None else g.reshape(-1) for p, g in both]
        self.flat = torch.cat([*parts, there])
        self.work = dist.all_reduce(self.flat, async_op=True)

    @torch.no_grad()
    def receive(self, size: int) -> None:
        """Wait for the sum and turn it into means."""
        assert self.flat is not None
        self.work.wait()
        sizes = [p.numel() for p in self.parameters]
        *sums, there = torch.split(self.flat, [*sizes, len(sizes)])
        for k, (parameter, sum) in enumerate(zip(self.parameters, sums, strict=True)):
            mean = sum.div_(size).view_as(parameter)
            if parameter.grad is not None:
                parameter.grad.copy_(mean)
            elif there[k] > 0:
                parameter.grad = mean.clone()
        self.work = self.flat = None
        self.waiting.clear()


def _hook(parameter: Any, function: Callable[[nn.Parameter], None]) -> Any:
    return parameter.register_post_accumulate_grad_hook(function)


def _buckets(parameters: Sequence[nn.Parameter], *, size: float) -> list[_Bucket]:
    """Parameters in their order, in buckets of one dtype and about ``size`` bytes."""
    buckets: list[_Bucket] = []
    filled = 0.0
    for parameter in parameters:
        if not buckets or filled >= size or buckets[-1].parameters[0].dtype != parameter.dtype:
            buckets.append(_Bucket())
            filled = 0.0
        buckets[-1].parameters.append(parameter)
        filled += parameter.numel() * parameter.element_size()
    return buckets


@dataclass(slots=True, kw_only=True)
class _Shards:
    """A tower of which each process holds a part. All must run it equally often: one without rows runs a made-up one.

    That row goes through the blocks in evaluation mode, so that no statistics see it, and is cut off again.
    """

    tower: ImageTower | TextTower
    module: Any
    fed: bool = False
    made_up: bool = False
    was_training: bool = True

    def before(self, tower: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        self.made_up = not len(inputs[0]) and not self.tower.locked
        self.fed = self.fed or len(inputs[0]) > 0
        if not self.made_up:
            return None
        self.was_training = tower.training
        tower.eval()
        if isinstance(self.tower, ImageTower):
            side = self.tower.settings.size
            return (inputs[0].new_zeros(1, 3, side, side),)
        return inputs[0].new_zeros(1, 1), inputs[1].new_ones(1, 1)

    def after(self, tower: nn.Module, _: Any, output: Embedding) -> Embedding | None:
        if not self.made_up:
            return None
        tower.train(self.was_training)
        return output.select(slice(0, 0))

    def finish(self, ranks: Ranks) -> None:
        """Where no process had a row, the parameters before the heads have no gradient, as on one process."""
        fed, self.fed = ranks.any(self.fed), False
        if not fed:
            for name, parameter in self.tower.named_parameters():
                if not name.startswith(("head.", "parts.")):
                    parameter.grad = None


def _shard(tower: ImageTower | TextTower, ranks: Ranks) -> _Shards:
    # Nothing here changes what a tower returns in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    shards = _Shards(tower=tower, module=tower)
    # Rows are made up before the weights come together, and cut off after they have been parted again.
    tower.register_forward_pre_hook(shards.before)
    # A locked tower may be given features, which pass its blocks by; it has no gradients there to save memory on.
    for block in [] if tower.locked else _blocks(tower):
        fully_shard(block, mesh=mesh)
    fully_shard(tower, mesh=mesh)
    tower.register_forward_hook(shards.after)
    for module in _sharded(tower) if ranks.device.type == "cpu" else []:
        module.set_force_sum_reduction_for_comms(True)  # gloo cannot average
    if tower.locked:
        # Locked features are also asked for by themselves.
        register_fsdp_forward_method(tower, "features")
    return shards


def _sharded(tower: nn.Module) -> list[FSDPModule]:
    return [module for module in tower.modules() if isinstance(module, FSDPModule)]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a tower that are called as modules; the last one may be read at one place only, and stays out."""
    for name, child in module.named_children():
        if name in _LISTS and isinstance(child, nn.ModuleList | nn.Sequential):
            yield from (block for block in list(child)[:-1] if next(block.parameters(), None) is not None)
        else:
            yield from _blocks(child)
