"""An AdamW that keeps its states in 16 or 8 bits, or its weights in bfloat16: torchao's, as this library needs it.

States in half precision are what CLIP did to fit (section 2.5); 8 bits in blocks are Dettmers et al. 2022; bfloat16
weights learn because rounding is drawn: up or down with the share that is rounded away.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unicl.errors import UserError

States = Literal["fp32", "bf16", "int8"]
Weights = Literal["fp32", "bf16"]
MOMENTS: Final = ("exp_avg", "exp_avg_sq")


def lowbit_adamw(
    groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float, states: States, rounded: bool
) -> Optimizer:
    """AdamW over parameter groups that hold their own rates and decays; ``rounded``: bfloat16 weights round by draws.

    Raises `UserError` if torchao is missing.
    """
    kind = _torchao("AdamW8bit" if states == "int8" else "_AdamW")
    optimiser: Optimizer = kind(groups, betas=betas, eps=eps, bf16_stochastic_round=rounded)
    if states != "int8":
        # torchao gives a state the type of its weight; made beforehand, it has the type that was asked for.
        dtype = torch.bfloat16 if states == "bf16" else torch.float32
        for parameter in _parameters(optimiser):
            optimiser.state[parameter] = {"step": torch.tensor(0.0)} | {
                name: torch.zeros_like(parameter, dtype=dtype) for name in MOMENTS
            }
    return optimiser


def halve_weights(model: nn.Module) -> None:
    """Matrices of a model to bfloat16; gains, biases and statistics, a hundredth of it, stay as they are."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim >= 2:
            parameter.data = parameter.data.to(torch.bfloat16)


def without_compiling(device: torch.device) -> AbstractContextManager[Any]:
    """torchao compiles its step for each shape of weights, which takes minutes on a CPU: there, take it as it is."""
    return torch.compiler.set_stance("force_eager") if device.type == "cpu" else nullcontext()


def keep_types_and_layouts(optimiser: Optimizer) -> None:
    """Let loaded states keep the type that they were saved in, and take the layout of their weights.

    `Optimizer.load_state_dict` casts states to the type of their weights and leaves their layout; a fused step reads
    both as plain memory and would mix up the numbers of a weight with channels innermost.
    """
    loaded: dict[str, Mapping[str, Any]] = {}

    def before(_: Optimizer, state: dict[str, Any]) -> None:
        loaded["state"] = state

    def after(optimiser: Optimizer) -> None:
        given = loaded.pop("state")
        names = [name for group in given["param_groups"] for name in group["params"]]
        for name, parameter in zip(names, _parameters(optimiser), strict=True):
            own = optimiser.state[parameter]
            for moment in own.keys() & set(MOMENTS):
                own[moment] = _fitted(given["state"][name][moment], own[moment], like=parameter)

    optimiser.register_load_state_dict_pre_hook(before)
    optimiser.register_load_state_dict_post_hook(after)


def _fitted(saved: Tensor, cast: Tensor, *, like: Tensor) -> Tensor:
    state = cast if saved.dtype == cast.dtype else saved.detach().clone().to(like.device)
    # A state in 8 bits is a pair of flat tensors, for which there is one layout only.
    if type(state) is not Tensor or state.stride() == like.stride():
        return state
    return torch.empty_like(like, dtype=state.dtype, requires_grad=False).copy_(state)


def _parameters(optimiser: Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _torchao(name: str) -> Any:
    try:
        optim = import_module("torchao.optim")
    except ImportError as error:
        raise UserError(
            "optimiser states or weights in fewer bits need torchao, which is not installed: "
            "pip install 'unicl[lowbit]'"
        ) from error
    return getattr(optim, name)
