"""Which places of a picture speak for a score, in models that compare whole pictures; by gradients.

Grad-CAM (Selvaraju et al. 2017) with products place by place: the gradient of a score times the states themselves,
added up over channels, and only what speaks for it. Behind a mean of places, both are the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unicl.compare import terms_of
from unicl.errors import UserError
from unicl.model import TwoTowers, View
from unicl.objective.terms import ContrastSettings
from unicl.similarity.find import find_similarity
from unicl.space import Embedding
from unicl.towers.last import FirstTokenBlock
from unicl.towers.parts import image_states
from unicl.use.explain.align import grid


def attribute(model: TwoTowers, pixels: Tensor, *, score: Callable[[Embedding], Tensor]) -> tuple[Tensor, Tensor]:
    """``(Q, h, w)``: how much each place of ``pixels (1, 3, S, S)`` speaks for each of Q scores; and the scores.

    ``score`` makes them of the picture's embedding. The states are those of the last map, of the last tokens, or,
    where a class token is all that is read, what its last attention reads. Raises `UserError` if there are no such.
    """
    backbone: Any = model.image.backbone
    with still(model), torch.enable_grad(), _watched(backbone) as seen:
        scores_Q = score(model.image(pixels.to(model.device)))
        if not seen:
            raise UserError(f"the image tower {model.settings.image.name!r} has no map of places that could be shown")
        states = seen[-1]
        each = [torch.autograd.grad(one, states, retain_graph=True)[0] for one in scores_Q]
    shares = torch.cat([gradient.float() * states.detach().float() for gradient in each])
    last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    prefix = int(getattr(backbone, "num_prefix_tokens", 0))
    places_QP = image_states(shares, prefix=prefix, channels_last=last).values.sum(2).clamp(min=0)
    return grid(places_QP).cpu(), scores_Q.detach().float().cpu()


def agreements(model: TwoTowers, images: Embedding, texts: Embedding, *, view: View) -> Tensor:
    """``(I, T)``: the second table of `unicl.compare.scores`, for finding pictures by text, with its gradient."""
    terms = terms_of(model, view) or (ContrastSettings(),)
    everything, weights = slice(None), torch.tensor([term.weight for term in terms])
    tables = []
    for term in terms:
        similarity = find_similarity(term.similarity, options={**term.options, **term.use_options})
        sides = (each.select(everything, dims=term.dims) for each in (images, texts))
        tables.append(similarity(*sides)[1])
    return torch.einsum("k,kit->it", weights / weights.sum(), torch.stack(tables))


@contextmanager
def still(model: TwoTowers) -> Iterator[None]:
    """Evaluation mode in which even a locked tower has gradients, and back to what it was."""
    tower, halved = model.image, next((p for p in model.parameters() if p.dtype == torch.bfloat16), None)
    kind = "cpu" if halved is None else halved.device.type
    modes = {module: module.training for module in model.modules()}
    locked, tower.locked = tower.locked, False
    model.eval()
    if model.settings.image.checkpointing:
        tower.backbone.set_grad_checkpointing(False)
    try:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=halved is not None):
            yield
    finally:
        tower.locked = locked
        for module, mode in modes.items():
            module.training = mode
        if model.settings.image.checkpointing:
            tower.backbone.set_grad_checkpointing(True)


@contextmanager
def _watched(backbone: Any) -> Iterator[list[Tensor]]:
    """The states that a backbone's answer is made of, put into a list as they pass; gradients begin there."""
    seen: list[Tensor] = []

    def watch(states: Tensor) -> Tensor:
        seen.append(states.detach().requires_grad_())
        return seen[-1]

    block = _class_token_block(backbone)
    if block is None:
        original = backbone.forward_features
        backbone.forward_features = lambda *given, **named: watch(original(*given, **named))
        try:
            yield seen
        finally:
            del backbone.forward_features
        return
    # What a patch says passes through a norm, which has no gradient along its input: products are 0 in front of it.
    if isinstance(block, FirstTokenBlock):
        handle = block.norm1.register_forward_hook(lambda _module, _given, states: watch(states))
    else:
        handle = block.attn.register_forward_pre_hook(lambda _module, given: (watch(given[0]), *given[1:]))
    try:
        yield seen
    finally:
        handle.remove()


def _class_token_block(backbone: Any) -> Any:
    """The last block of a transformer of which only the class token is read; None for any other model."""
    blocks = getattr(backbone, "blocks", None)
    reads_token = getattr(backbone, "global_pool", None) == "token" and getattr(backbone, "attn_pool", None) is None
    if not reads_token or blocks is None or not getattr(backbone, "num_prefix_tokens", 0):
        return None
    last = blocks[-1]
    return last if isinstance(last, FirstTokenBlock) or hasattr(last, "attn") else None
