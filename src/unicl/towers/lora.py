"""Adapters of low rank on a tower's matrices (Hu et al. 2021, "LoRA"), through `peft`: they learn, the tower does not.

Every matrix W that maps features to features, in attention, MLP and convolutions, becomes W + B A, with A drawn as peft
draws it and B zero, so that an adapted tower starts as the tower it adapts. Tables, positions, norms and what reads
pixels stay as they are. The entries of a tower's state keep their names; adapters are entries beside them.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unicl.errors import UserError

PIXELS: Final = 3
"""Channels of what a convolution on pixels reads."""
_ADAPTER: Final = re.compile(r"(?:^|\.)lora_[AB]\.")
_NAME: Final = "default"
_BASE: Final = "base_layer."


def check_rank(rank: int, *, locked: bool) -> None:
    """Raise `UserError` if a tower cannot have adapters of this rank."""
    if rank < 0:
        raise UserError(f"lora is the rank of adapters, 0 or more, not {rank}; 0 is none, 8 or 16 are common")
    if rank and locked:
        raise UserError(f"a locked tower does not learn, adapters of rank {rank} would not either; give lora or locked")


def adapt(backbone: nn.Module, *, rank: int, probe: Callable[[], object]) -> None:
    """Put adapters on a backbone, in place; ``probe`` runs it once.

    A matrix that the backbone reads without calling its layer, as some models do with those of attention, would go
    round its adapter, and gets none. Raises `UserError` if peft is missing or no matrix can be adapted.
    """
    names = [name for name, module in backbone.named_modules() if _can_adapt(module)]
    if names:
        _inject(backbone, names, rank=rank)
        if next(backbone.parameters()).device.type != "meta":
            _drop_unused(backbone, probe)
    if not any(_layers(backbone)):
        raise UserError("this model has no plain matrix that an adapter could sit on; set lora to 0")
    for _, layer in _layers(backbone):
        layer.register_state_dict_post_hook(_say_plainly)
        layer.register_load_state_dict_pre_hook(_hear_plainly)


def adapters(module: nn.Module) -> dict[str, Tensor]:
    """The entries of a module's state that are adapters' and that no published checkpoint has; empty without any."""
    return {name: value for name, value in module.state_dict().items() if _ADAPTER.search(name)}


def let_learn(backbone: nn.Module, *, learns: bool) -> None:
    """Let a backbone learn, its adapters alone if it has any, or nothing of it."""
    named = list(backbone.named_parameters())
    own = {name for name, _ in named if _ADAPTER.search(name)}
    for name, parameter in named:
        parameter.requires_grad_(learns and (not own or name in own))


def hold_statistics(backbone: nn.Module) -> None:
    """Keep the statistics of batch norm as they are: the weights around them do not move either."""
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def merge_adapters(module: nn.Module) -> None:
    """Add every adapter to its matrix, in place, and take it away: plain layers, under the same names."""
    for parent, name, layer in list(_places(module)):
        layer.merge()
        setattr(parent, name, layer.base_layer)


def _can_adapt(module: nn.Module) -> bool:
    # A layer of a derived type may do something else with its matrix.
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.in_channels > PIXELS
    return type(module) is nn.Linear


def _inject(backbone: nn.Module, names: list[str], *, rank: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("adapters need peft, which is not installed: pip install 'unicl[adapt]'") from error
    exactly = "|".join(map(re.escape, names))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=exactly), backbone, _NAME)
    del backbone.peft_config


@torch.no_grad()
def _drop_unused(backbone: nn.Module, probe: Callable[[], object]) -> None:
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for _, layer in _layers(backbone)]
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        probe()
    finally:
        for module, mode in modes.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    for parent, name, layer in list(_places(backbone)):
        if layer not in called:
            setattr(parent, name, layer.base_layer)


def _layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, child in module.named_modules():
        if hasattr(child, "lora_A") and hasattr(child, "base_layer"):
            yield name, child


def _places(module: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for path, layer in _layers(module):
        parent, _, name = path.rpartition(".")
        yield module.get_submodule(parent), name, layer


def _say_plainly(_: nn.Module, state: dict[str, Any], prefix: str, _metadata: object) -> None:
    """An adapted matrix is saved under the name that it had before."""
    inner = prefix + _BASE
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _hear_plainly(_: nn.Module, state: dict[str, Any], prefix: str, *_rest: object) -> None:
    own = [key for key in state if key.startswith(prefix) and not _ADAPTER.search(key.removeprefix(prefix))]
    for key in own:
        state[prefix + _BASE + key.removeprefix(prefix)] = state.pop(key)
