"""What the optimiser does at a step: parameter groups, learning rate, clipping, moving average."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from unicl.errors import UserError, suggest
from unicl.train.lamb import Lamb, Variant
from unicl.train.lookahead import look_ahead
from unicl.train.lowbit import States, Weights, keep_types_and_layouts, lowbit_adamw, without_compiling

ALIKE: Final[Mapping[str, float]] = MappingProxyType({})
"""No parameter has another rate than the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSettings:
    """AdamW with linear warm-up and a cosine to ``lr * final``; CLIP's values (tables 18 to 20) but for the warm-up.

    ``method``: "adamw"; "lamb" (FILIP, ALIGN), of which ``lamb`` says which (`unicl.train.lamb.Variant`); "adam", where
    decay is a part of the gradient (GLoRIA); "sgd", with ``beta1`` as its momentum (VirTex).
    ``warmup`` counts steps, or is a share of all steps if below 1; ``decline`` is the way from there to the end.
    ``halve``: evaluations without a better one, after which the rate is halved, and again after as many more (ConVIRT).
    ``clip`` bounds the norm of the gradient.
    ``decay_embeddings``: whether tables of words and places decay like other matrices; not in FILIP (appendix).
    ``undecayed``: words; a parameter decays unless its name has one of them, whatever its dimensions (cn_clip,
    COYO-ALIGN), where ``*`` stands for anything. None is `parameter_groups`' own rule.
    ``rates``: factors of the rate by such words; of those that a parameter's name has, the last one counts.
    ``lookahead``: every so many steps, weights keep ``lookahead_share`` of the way that they came
    (`unicl.train.lookahead`); 0 is never.
    ``states``: the type in which AdamW keeps its two moments; ``weights``: the type of the towers' matrices, where
    "bf16" needs the precision "bf16" and rounds by draws. Both save memory and change the numbers.
    """

    method: Literal["adamw", "lamb", "adam", "sgd"] = "adamw"
    lamb: Variant = "uncorrected"
    lr: float = 5e-4
    weight_decay: float = 0.2
    decay_embeddings: bool = True
    undecayed: tuple[str, ...] | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    lookahead: int = 0
    lookahead_share: float = 0.5
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    warmup: float = 0.1
    decline: Literal["cosine", "linear"] = "cosine"
    final: float = 0.0
    halve: int | None = None
    clip: float | None = 1.0
    states: States = "fp32"
    weights: Weights = "fp32"


def learning_rate(step: int, *, steps: int, settings: OptimSettings, halved: int = 0) -> float:
    """The learning rate of a step (counted from 0) of a run of ``steps``, halved so many times after the warm-up."""
    warmup = settings.warmup * steps if settings.warmup < 1 else settings.warmup
    if step < warmup:
        return settings.lr * (step + 1) / max(warmup, 1)
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    left = 1 - done if settings.decline == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.lr * (settings.final + (1 - settings.final) * left) * 0.5**halved


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decay_embeddings: bool = True, undecayed: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Two groups: matrices decay; gains, biases and scales (fewer than two dimensions) do not (CLIP, section 2.5).

    With ``undecayed``, it is names that count instead: whatever has one of these words in its name does not decay.
    Without ``decay_embeddings``, neither do tables of words, and what timm exempts: places and the class token.
    Parameters that are shards are in two more groups, since a fused step does not mix them with others.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    kinds = dict.fromkeys(isinstance(p, DTensor) for p in learning)
    exempt = set() if decay_embeddings else {id(p) for p in _embeddings(model)}
    for name, p in model.named_parameters():
        if p.ndim < 2 if undecayed is None else any(_has(name, word) for word in undecayed):
            exempt.add(id(p))

    def kind(p: nn.Parameter) -> tuple[bool, bool]:
        return id(p) not in exempt, isinstance(p, DTensor)

    return [
        {"params": [p for p in learning if kind(p) == (decays, sharded)]}
        | {"weight_decay": weight_decay if decays else 0.0, "decays": decays}
        for sharded in kinds
        for decays in (True, False)
    ]


def _embeddings(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module.weight
        exempt: Any = getattr(module, "no_weight_decay", set)
        known = dict(module.named_parameters())
        yield from (known[name] for name in known.keys() & exempt())


def make_optimiser(
    model: nn.Module, settings: OptimSettings, *, apart: bool = False, shares: Mapping[str, float] = ALIKE
) -> Optimizer:
    """The optimiser of a model whose weights are where and as they will be trained; fused where there is that kernel.

    With ``apart``, each tower has groups of its own, whose ``tower`` says which, so that they may have their own rates.
    ``shares`` are factors of the rate by a parameter's name, where it has one (`unicl.train.learning.shares_of`).
    Raises `UserError` if the settings do not go together, or need torchao and it is missing.
    """
    optimiser = _plain(model, settings, apart=apart, shares=shares)
    if settings.lookahead:
        look_ahead(optimiser, every=settings.lookahead, share=settings.lookahead_share)
    return optimiser


def _plain(model: nn.Module, settings: OptimSettings, *, apart: bool, shares: Mapping[str, float]) -> Optimizer:
    if settings.method == "adamw":
        return adamw(model, settings, apart=apart, shares=shares)
    if (settings.states, settings.weights) != ("fp32", "fp32"):
        raise UserError(
            f"the optimiser {settings.method!r} keeps its states and weights in fp32 only; leave optim.states and "
            "optim.weights out, or take --set optim.method=adamw"
        )
    groups = _groups(model, settings, apart=apart, shares=shares)
    betas, eps = (settings.beta1, settings.beta2), settings.eps
    optimiser: Optimizer
    if settings.method == "lamb":
        optimiser = Lamb(groups, lr=settings.lr, betas=betas, eps=eps, variant=settings.lamb)
    elif settings.method == "sgd":
        optimiser = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.beta1)
    else:
        optimiser = torch.optim.Adam(groups, lr=settings.lr, betas=betas, eps=eps, fused=_fuses(model))
    keep_types_and_layouts(optimiser)
    return optimiser


def adamw(
    model: nn.Module, settings: OptimSettings, *, apart: bool = False, shares: Mapping[str, float] = ALIKE
) -> Optimizer:
    """AdamW, in fewer bits where the settings ask for them; as in `make_optimiser`."""
    groups = _groups(model, settings, apart=apart, shares=shares)
    betas = (settings.beta1, settings.beta2)
    if settings.states == "fp32" and settings.weights == "fp32":
        optimiser: Optimizer = torch.optim.AdamW(
            groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=_fuses(model)
        )
    else:
        rated = [{**group, "lr": settings.lr} for group in groups]
        rounded = settings.weights == "bf16"
        optimiser = lowbit_adamw(rated, betas=betas, eps=settings.eps, states=settings.states, rounded=rounded)
    keep_types_and_layouts(optimiser)
    return optimiser


def _groups(
    model: nn.Module, settings: OptimSettings, *, apart: bool, shares: Mapping[str, float]
) -> list[dict[str, Any]]:
    groups = parameter_groups(
        model,
        weight_decay=settings.weight_decay,
        decay_embeddings=settings.decay_embeddings,
        undecayed=settings.undecayed,
    )
    if not apart and not shares and not settings.rates:
        return groups
    factors = _factors([name for name, _ in model.named_parameters()], settings.rates)
    kinds = {
        id(p): (name.partition(".")[0] if apart else "", shares.get(name, 1.0) * factors[name])
        for name, p in model.named_parameters()
    }
    return [
        {**group, "params": own, "tower": kind[0], "share": kind[1]}
        for group in groups
        for kind in dict.fromkeys(kinds.values())
        if (own := [p for p in group["params"] if kinds[id(p)] == kind])
    ]


def _factors(names: Sequence[str], rates: Mapping[str, float]) -> dict[str, float]:
    """The factor of each name; raises `UserError` for a word that none has."""
    for word in rates:
        if not any(_has(name, word) for name in names):
            raise UserError(
                f"optim.rates: no parameter has {word!r} in its name{suggest(word, names)}; names are such as "
                f"{names[0]!r} and {names[-1]!r}"
            )
    return {name: ([1.0] + [rate for word, rate in rates.items() if _has(name, word)])[-1] for name in names}


def _has(name: str, word: str) -> bool:
    return fnmatchcase(name, f"*{word}*")


def _fuses(model: nn.Module) -> bool:
    return next(model.parameters()).device.type in ("cuda", "cpu")


def take_step(
    optimiser: Optimizer, *, rate: float, seed: int, factors: Mapping[str, float] = MappingProxyType({})
) -> None:
    """One step at a learning rate; what is drawn, to round bfloat16 weights, depends on the seed alone.

    ``factors`` are those of the rate by tower, where the optimiser keeps towers apart.
    The seed must be the same on all processes that keep whole weights, or they would drift apart.
    """
    for group in optimiser.param_groups:
        own = rate * factors.get(group.get("tower", ""), 1.0) * group.get("share", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own
    torch.manual_seed(seed)
    if type(optimiser) in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, Lamb):
        optimiser.step()
        return
    device = next(p.device for group in optimiser.param_groups for p in group["params"])
    with without_compiling(device):
        optimiser.step()


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], *, norm: float | None) -> Tensor:
    """Bring the gradient's norm down to ``norm`` if it is above; returns the norm before, of all shards if sharded."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    kinds = dict.fromkeys((isinstance(g, DTensor), g.dtype) for g in grads)
    alike = [[g for g in grads if (isinstance(g, DTensor), g.dtype) == kind] for kind in kinds]
    norms = [_whole(nn.utils.get_total_norm(each)) for each in alike]
    norms = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in norms]
    total = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) != 1 else norms[0]
    if norm is not None:
        factor = (norm / (total + 1e-6)).clamp(max=1.0)
        for each in alike:
            torch._foreach_mul_(each, factor)
    return total


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


class Average:
    """An exponential moving average of a model's floating-point state: what is evaluated and saved for use.

    In the first steps the decay is ``(1 + step) / (10 + step)``, so that random initial weights do not linger.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.state = {name: _averaged(value) for name, value in model.state_dict().items()}
        self.away: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int) -> None:
        """Move towards the model after a step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value.to(self.state[name].dtype), 1 - decay)
            else:
                self.state[name].copy_(value)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the average and the model's own weights; done twice, everything is as before."""
        for name, value in model.state_dict().items():
            own = value.to(self.state[name].dtype, copy=True)
            value.copy_(self.state[name])
            if value.dtype == own.dtype:
                self.state[name].copy_(own)
            elif name in self.away:
                self.state[name] = self.away.pop(name)
            else:
                # Weights in fewer bits cannot hold the average, which waits here until they come back.
                self.away[name], self.state[name] = self.state[name], own

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up a saved average."""
        for name, value in self.state.items():
            value.copy_(state[name])


def _averaged(value: Tensor) -> Tensor:
    exact = value.detach().clone(memory_format=torch.contiguous_format)
    return exact.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else exact
