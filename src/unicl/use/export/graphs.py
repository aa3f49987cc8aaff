"""Towers as graphs of tensors alone: no branch that depends on the data, so that they can be traced whole."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.model import TwoTowers, View
from unicl.space import prefix
from unicl.towers.heads import places_of, pool_tokens
from unicl.towers.image import ImageTower
from unicl.towers.last import clip_text_at
from unicl.towers.lora import adapters, merge_adapters
from unicl.towers.text import TextTower
from unicl.towers.transformer import mean_state, states_of
from unicl.use.export.settings import JOINT, ExportSettings

Masks = Literal["wide", "narrow", "none"]
"""How a transformer is told of padding: added to the scores of attention, as the mask of the tokens, or not at all."""
FAR: Final = -1e4
"""Added to the score of padding: its softmax is 0, and half precision still holds it."""
TOLERANCE: Final = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A module that can be traced: example ``inputs`` by name, which of their dimensions vary, and its outputs.

    ``longest`` is the most tokens of a text.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    varying: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
    longest: int | None = None

    def traced(self) -> Any:
        """As a `torch.export.ExportedProgram`; raises `UserError` if the tower cannot be traced."""
        names = sorted({name for axes in self.varying.values() for name in axes.values()})
        axes = {name: torch.export.Dim(name, max=self.longest if name == "length" else None) for name in names}
        shapes = {name: {k: axes[axis] for k, axis in found.items()} for name, found in self.varying.items()}
        try:
            with torch.no_grad():
                return torch.export.export(
                    self.module, tuple(self.inputs.values()), dynamic_shapes=tuple(shapes.values())
                )
        except Exception as error:  # torch raises many kinds here
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"this tower cannot be turned into a graph: {first}", code=1) from error


class _Ends(nn.Module):
    """From features to the outputs: the head, and the views of its output, in float32."""

    def __init__(self, head: nn.Module, *, dims: tuple[int | None, ...], normalise: bool) -> None:
        super().__init__()
        self.head: Final = head
        self.dims: Final = dims
        self.normalise: Final = normalise

    def forward(self, features_NF: Tensor) -> tuple[Tensor, ...]:
        raw = self.head(features_NF).to(torch.float32)
        if not self.normalise:
            return (*(raw[:, :dims] for dims in self.dims), features_NF.to(torch.float32))
        whole = F.normalize(raw, dim=-1)
        return (*(prefix(whole, dims) for dims in self.dims), features_NF.to(torch.float32))


class ImageGraph(nn.Module):
    """``(N, 3, S, S)`` pixels, 0 to 255, to vectors by view and features."""

    shift: Tensor
    spread: Tensor

    def __init__(self, tower: ImageTower, *, dims: tuple[int | None, ...], settings: ExportSettings) -> None:
        super().__init__()
        self.backbone: Final = _own(tower.backbone, settings)
        self.pool: Final = _own(tower.pool, settings)
        self.dtype: Final = _dtype(settings)
        self.side: Final = tower.settings.enlarged
        self.ends: Final = _Ends(_own(tower.head, settings), dims=dims, normalise=settings.normalise)
        self.register_buffer("shift", 255 * tower.mean.float().cpu())
        self.register_buffer("spread", 255 * tower.std.float().cpu())

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        pixels = pixels.to(torch.float32)
        if self.side:
            pixels = F.interpolate(pixels, size=(self.side, self.side), mode="bilinear", align_corners=True)
        scaled = (pixels - self.shift) / self.spread
        ends: tuple[Tensor, ...] = self.ends(self.pool(self.backbone(scaled.to(self.dtype))))
        return ends


class TextGraph(nn.Module):
    """``(N, L)`` tokens and their mask to vectors by view and features; padding is right."""

    def __init__(
        self, tower: TextTower, *, dims: tuple[int | None, ...], settings: ExportSettings, masks: Masks = "wide"
    ) -> None:
        super().__init__()
        if tower.pool == "parts":
            raise UserError("whole vectors that are means of parts cannot be exported; take a model of another pool")
        if tower.pool == "padded":
            raise UserError(
                "texts that are read over their padding cannot be exported as a graph, which pads as it likes; train "
                "with --set text.pool=mean, or write --to safetensors"
            )
        self.pool: Final = tower.pool
        self.states: Final = tower.settings.states
        self.eos_id: Final = tower.eos_id
        self.causal: Final = tower.causal
        self.layers: Final = 1 if tower.settings.parts is None else tower.settings.parts.layers
        self.masks: Final[Masks] = "none" if tower.causal else masks
        self.backbone: Final = _own(tower.backbone, settings)
        self.dtype: Final = _dtype(settings)
        self.ends: Final = _Ends(_own(tower.head, settings), dims=dims, normalise=settings.normalise)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        ends: tuple[Tensor, ...] = self.ends(self._features(tokens, mask))
        return ends

    def _features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if not self.states and self.layers == 1 and self.causal and (self.pool == "eos" or self.pool == "last"):
            places = places_of(self.pool, tokens=tokens, mask=mask, eos_id=self.eos_id)
            return clip_text_at(self.backbone, tokens, places=places)
        seen = self._seen(mask)
        if self.states:
            states = mean_state(self.backbone, tokens, mask=seen, states=self.states)
        else:
            states = states_of(self.backbone, tokens, mask=seen, layers=self.layers)
        return pool_tokens(states, pool=self.pool, tokens=tokens, mask=mask, eos_id=self.eos_id)

    def _seen(self, mask: Tensor) -> Tensor | None:
        match self.masks:
            case "wide":
                return ((~mask).to(self.dtype) * FAR)[:, None, None, :]
            case "narrow":
                return mask
            case "none":
                return None


class JointGraph(nn.Module):
    """Images and texts to the vectors of one view and the scaled scores ``(I, T)``."""

    def __init__(self, image: ImageGraph, text: TextGraph, *, scale: float, bias: float) -> None:
        super().__init__()
        self.image: Final = image
        self.text: Final = text
        self.scale: Final = scale
        self.bias: Final = bias

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image, text = self.image(pixels)[0], self.text(tokens, mask)[0]
        scores = self.scale * (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T) + self.bias
        return image, text, scores


def dims_of(model: TwoTowers, settings: ExportSettings) -> dict[str, int | None]:
    """The vectors of a graph by the end of their names: how many leading dimensions each reads, None for all."""
    views = model.settings.views
    if settings.view == "both":
        also = {} if views["classes"] is None else {"classes": views["classes"]}
        return {"embedding": None, **also}
    return {"embedding": views[settings.view]}


def image_graph(model: TwoTowers, settings: ExportSettings) -> Graph:
    """The image tower of a model."""
    dims = dims_of(model, settings)
    side = model.settings.image.size
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8).to(getattr(torch, settings.pixels))
    return Graph(
        module=ImageGraph(model.image, dims=tuple(dims.values()), settings=settings).eval(),
        inputs={"pixels": pixels},
        varying={"pixels": {0: "images"}},
        outputs=tuple(f"image_{end}" for end in (*dims, "features")),
    )


def text_graph(model: TwoTowers, settings: ExportSettings) -> Graph:
    """The text tower of a model; raises `UserError` if it has none."""
    tower, tokenizer = model.text, model.tokenizer
    if tower is None or tokenizer is None:
        raise UserError(f"this model was trained with {model.settings.recipe!r}, which has no text tower to export")
    dims = dims_of(model, settings)
    tokens, mask = tokenizer(["a", "a red fruit on a table", "two words"])
    inputs = {"tokens": tokens, "mask": mask}
    return Graph(
        module=_fitting(tower, inputs, dims=tuple(dims.values()), settings=settings),
        inputs=inputs,
        # A fixed text is always as long as the context.
        varying={name: {0: "texts"} if tokenizer.fixed else {0: "texts", 1: "length"} for name in inputs},
        outputs=tuple(f"text_{end}" for end in (*dims, "features")),
        longest=tokenizer.context,
    )


def joint_graph(model: TwoTowers, image: Graph, text: Graph, *, view: View) -> Graph:
    """Both towers and the scores of a view."""
    scale, bias = scoring(model, view=view)
    return Graph(
        module=JointGraph(image.module, text.module, scale=scale, bias=bias).eval(),  # type: ignore[arg-type]
        inputs={**image.inputs, **text.inputs},
        varying={**image.varying, **text.varying},
        outputs=JOINT,
        longest=text.longest,
    )


def scoring(model: TwoTowers, *, view: View) -> tuple[float, float]:
    """The multiplier of cosines in a view, and what is added to them (SigLIP)."""
    found = model.objective.scales().get(view) or next(iter(model.objective.scales().values()), None)
    return model.scale(view), 0.0 if found is None or found.bias is None else float(found.bias.detach())


@torch.no_grad()
def _fitting(
    tower: TextTower, inputs: Mapping[str, Tensor], *, dims: tuple[int | None, ...], settings: ExportSettings
) -> TextGraph:
    """The graph whose form of masks this transformer reads as its tower does: not all take every form."""
    exact = ExportSettings(view=settings.view)
    wanted = _features(tower, inputs)
    forms: tuple[Masks, ...] = ("wide", "narrow")
    for masks in forms:
        graph = TextGraph(tower, dims=dims, settings=exact, masks=masks).eval()
        try:
            found = graph(**inputs)[-1]
        except (IndexError, RuntimeError, TypeError, ValueError):
            continue
        if torch.allclose(found, wanted, atol=TOLERANCE, rtol=TOLERANCE):
            return TextGraph(tower, dims=dims, settings=settings, masks=masks).eval()
    raise UserError(
        f"the text model {tower.settings.name!r} gives other numbers as a graph, and cannot be exported", code=1
    )


def _features(tower: TextTower, inputs: Mapping[str, Tensor]) -> Tensor:
    training = tower.training
    try:
        return tower.eval().features(inputs["tokens"], inputs["mask"]).float()
    finally:
        tower.train(training)


def _own(module: nn.Module, settings: ExportSettings) -> nn.Module:
    """The module itself if it can be traced as it is, or a copy without adapters: the model stays as it is."""
    dtype, cpu = _dtype(settings), torch.device("cpu")
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    fits = all(t.dtype == dtype and t.device == cpu for t in tensors)
    if fits and not adapters(module):
        return module
    copied = deepcopy(module)
    merge_adapters(copied)
    return copied.to(cpu, dtype)


def _dtype(settings: ExportSettings) -> torch.dtype:
    return torch.float16 if settings.dtype == "fp16" else torch.float32
