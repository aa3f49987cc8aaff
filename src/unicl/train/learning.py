"""What of a tower learns, and how fast: all of it, its last blocks, some names, its head, or nothing."""

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, Literal

from timm.models import group_parameters
from torch import nn

from unicl.errors import UserError, suggest
from unicl.towers.image import ImageTower
from unicl.towers.text import TextTower

Part = Literal["all", "head", "none"]
Tower = ImageTower | TextTower


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What of a tower learns in a stage, and at which factor of the stage's learning rate.

    * ``part``: "all"; "head": what comes before the head is locked (LiT, section 3); "none".
    * ``from_block``: the first block that learns, counted as in a slice: 6 locks the first six and what comes before
      them (ConVIRT, section 4.2), 0 only tables of words or patches, -2 all before the last two blocks.
    * ``only``: patterns of parameter names of which one must fit, such as "*.bias"; ``locked``: of which none may.
    * ``rates``: factors, each for an equal part of the stage (LiT, appendix G): (0.1,) is slower, (0, 1) delayed,
      (0, 0.1) both, and (0, 1, 0, 1) beside (1, 0, 1, 0) for the other tower two cycles. While it is 0, the tower is
      locked, its head included.
    * ``decay``: the factor from a block to the one before it; the last block is one below the head, which has 1, and
      what comes before the first block is one below that (BEiT's fine-tuning). 1 is the same rate for all.
    * ``ramp``: leads from one factor to the next along a sigmoid ``1 / (1 + exp(-x / ramp))``, x in shares of the
      stage; 0 jumps. With (0, 1) it is LiT's "sigmoid".

    What does not learn is in evaluation mode: no dropout, and statistics of batch norm stay. It has no gradient, hence
    no decay and no share in the norm that is clipped. Raises `UserError` for values that say nothing.
    """

    part: Part = "all"
    from_block: int | None = None
    only: tuple[str, ...] = ()
    locked: tuple[str, ...] = ()
    rates: tuple[float, ...] = (1.0,)
    decay: float = 1.0
    ramp: float = 0.0

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) < 0 or not all(math.isfinite(rate) for rate in self.rates):
            raise UserError(f"rates={self.rates} are not factors of a learning rate, such as (0, 1) for a late start")
        if not 0 < self.decay <= 1:
            raise UserError(f"decay={self.decay:g} is no factor from a block to the one before; give .65 to .9, or 1")
        if not 0 <= self.ramp <= 1:
            raise UserError(f"ramp={self.ramp} is not a share of a stage; 0 jumps, 0.05 is a soft start")
        if self.part != "all" and self.from_block is not None:
            raise UserError(
                f"from_block={self.from_block} says which blocks learn, but part={self.part!r} that none does; "
                "leave one of them out"
            )

    @property
    def still(self) -> bool:
        """Whether what comes before the head stays as it is, in all of the stage: its features can be kept."""
        return self.part != "all" or self.never

    @property
    def never(self) -> bool:
        """Whether nothing of the tower learns at any time."""
        return self.part == "none" or max(self.rates) == 0

    @property
    def changes(self) -> bool:
        """Whether the tower is locked for some parts of the stage only."""
        return not self.never and not self.ramp and 0 in self.rates

    def factor(self, done: float) -> float:
        """The factor of the learning rate when a share of the stage, 0 to 1, is done."""
        number = len(self.rates)
        if not self.ramp:
            return self.rates[min(int(done * number), number - 1)]
        steps = ((k / number, after - before) for k, (before, after) in enumerate(pairwise(self.rates), start=1))
        return self.rates[0] + sum(change * _sigmoid((done - at) / self.ramp) for at, change in steps)


def set_learning(tower: Tower, learning: Learning) -> None:
    """Let learn of a tower what is asked and hold the rest; may be done again at any time.

    ``rates`` are left to who takes the steps. Raises `UserError` for blocks or names that the tower does not have.
    """
    tower.lock(learning.part != "all")
    for module in _ends(tower):
        module.requires_grad_(learning.part != "none")
    left = _left_out(tower, learning)
    for name, parameter in tower.named_parameters():
        if name in left:
            parameter.requires_grad_(False)
    if not tower.locked and not _learns(_body(tower)):
        tower.lock(True)
    if not _learns([tower]):
        tower.held = list(tower.children())
    elif left and not tower.locked:
        tower.held = list(_still(tower))
    tower.train(tower.training)


def what_learns(tower: Tower) -> Literal["all", "some", "head", "none"]:
    """What of a tower learns now: at "head" and "none", features before the head stay as they are."""
    body = [parameter.requires_grad for module in _body(tower) for parameter in module.parameters()]
    if any(body):
        return "all" if all(body) else "some"
    return "head" if _learns(_ends(tower)) else "none"


def shares_of(tower: Tower, learning: Learning) -> Mapping[str, float]:
    """The factor of the learning rate of each parameter by name, where ``decay`` makes it another one than 1."""
    if learning.decay == 1 or what_learns(tower) in ("head", "none"):
        return {}
    blocks, number = blocks_of(tower.backbone)
    return {f"backbone.{name}": learning.decay ** (number - block) for name, block in blocks.items()}


def blocks_of(backbone: Any) -> tuple[dict[str, int], int]:
    """The block of each parameter by name, -1 before the first one, and how many blocks there are.

    An image model's are the layers that timm decays rates by (``group_matcher``); a text model's its longest list of
    modules. What comes behind the last block belongs to it. Raises `UserError` if there are none.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if hasattr(backbone, "group_matcher"):
        layers = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
        # A last norm or pool may be a layer of its own there; blocks have numbers.
        starts = sorted({layers[name] for name in names if layers[name] and re.search(r"\.\d+\.", name)})
        found = {name: bisect_right(starts, layers[name]) - 1 for name in names}
        number = len(starts)
    else:
        found, number = _listed(backbone, names)
    if not number:
        raise UserError(f"{type(backbone).__name__} has no blocks that could learn one by one; leave from_block out")
    return found, number


def _listed(backbone: nn.Module, names: Sequence[str]) -> tuple[dict[str, int], int]:
    lists = [(name, part) for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList)]
    prefix, blocks = max(lists, key=lambda each: len(each[1]), default=("", nn.ModuleList()))
    found, block = {}, -1
    for name in names:
        if name.startswith(f"{prefix}."):
            block = int(name.removeprefix(f"{prefix}.").partition(".")[0])
        found[name] = block
    return found, len(blocks)


def _left_out(tower: Tower, learning: Learning) -> set[str]:
    """The names of a tower's parameters that are asked not to learn where the rest does."""
    names = [name for name, _ in tower.named_parameters()]
    left = set(names) - _fitting(learning.only, names, field="only") if learning.only else set()
    left |= _fitting(learning.locked, names, field="locked")
    if learning.from_block is not None:
        blocks, number = blocks_of(tower.backbone)
        if not -number <= learning.from_block < number:
            raise UserError(
                f"from_block={learning.from_block} is not one of the {number} blocks of {tower.settings.name!r}; "
                f"they are 0 to {number - 1}, or -{number} to -1 from the end"
            )
        first = learning.from_block % number
        left |= {f"backbone.{name}" for name, block in blocks.items() if block < first}
    return left


def _fitting(patterns: Iterable[str], names: Sequence[str], *, field: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        fits = {name for name in names if fnmatchcase(name, pattern)}
        if not fits:
            raise UserError(
                f"{field}: no parameter fits {pattern!r}{suggest(pattern, names)}; names are such as {names[0]!r} and "
                f"{names[-1]!r}, and * stands for anything"
            )
        found |= fits
    return found


def _still(tower: Tower) -> Iterator[nn.Module]:
    """The largest modules in which nothing learns; those without weights only if they come before all that learns."""
    learned = False
    waiting: list[nn.Module] = [tower]
    while waiting:
        module = waiting.pop(0)
        learn = [parameter.requires_grad for parameter in module.parameters()]
        if not any(learn) and (learn or not learned):
            yield module
        elif learn:
            learned = learned or any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            waiting = [*module.children(), *waiting]


def _body(tower: Tower) -> list[nn.Module]:
    """What comes before the head."""
    return [tower.backbone, tower.pool] if isinstance(tower, ImageTower) else [tower.backbone]


def _ends(tower: Tower) -> list[nn.Module]:
    return [module for module in (tower.head, tower.parts) if module is not None]


def _learns(modules: Iterable[nn.Module]) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def _sigmoid(x: float) -> float:
    return (1 + math.tanh(x / 2)) / 2
