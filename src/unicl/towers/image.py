"""A timm model as an image tower: uint8 pixels to embeddings."""

import inspect
from dataclasses import dataclass
from math import ceil, gcd
from typing import Any, Final, Literal, Self

import timm
import torch
from timm.layers import AttentionPool2d, RotAttentionPool2d
from torch import Tensor, nn

from unicl.errors import UserError, suggest
from unicl.space import Embedding
from unicl.towers.heads import HeadKind, embed, make_head
from unicl.towers.last import read_first_token
from unicl.towers.weights import hub
from unicl.towers.weights.load import load_image_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """What an image tower is made of.

    * ``name``: any timm model; ``size``: side of the square images in pixels.
    * ``pool``: "default" is the model's own; "avg" the mean of all places; "token" the class token; "map" a learned
      query that attends to all places (CLIP, section 2.4).
    * ``head``: see `unicl.towers.heads.make_head`. With "none", a model that ends on an attention pool (CLIP's
      ResNets) lets that pool's output layer make the embedding.
    * ``weights``: "random", "hub", "package:NAME", or a file or folder.
    * ``locked``: the backbone does not learn (LiT, section 3); its head still does.
    * ``drop_path``, ``patch_drop``, ``dropout``: shares of residual branches, of patches and of features (before the
      head) dropped in training.
    """

    name: str = "vit_tiny_patch16_224"
    size: int = 224
    pool: Literal["default", "avg", "token", "map"] = "default"
    head: HeadKind = "linear"
    weights: str = "random"
    locked: bool = False
    drop_path: float = 0.0
    patch_drop: float = 0.0
    dropout: float = 0.0
    checkpointing: bool = False


class ImageTower(nn.Module):
    """A timm backbone and a head; ``width`` is the embedding's. Weights are random: see `build_image_tower`.

    Raises `UserError` if timm has no such model or the model cannot be built so.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ImageSettings, *, width: int) -> None:
        super().__init__()
        self.settings: Final = settings
        self.backbone: Final = _backbone(settings, width=width)
        self.pool: Final = _extra_pool(self.backbone, settings)
        self.feature_width: Final[int] = _feature_width(self.backbone)
        self.dropout: Final = nn.Dropout(settings.dropout)
        self.head: Final = make_head(settings.head, features=self.feature_width, width=width)
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))
        shown = self.backbone.pretrained_cfg
        self.set_normalisation(mean=shown["mean"], std=shown["std"])
        self.channels_last: bool = self.convolutional
        self.locked = False
        self.lock(settings.locked)

    @property
    def convolutional(self) -> bool:
        """Whether the backbone convolves more than patches."""
        return sum(isinstance(module, nn.Conv2d) for module in self.backbone.modules()) > 1

    def lay_out(self, channels_last: bool, *, weights: bool = True) -> None:
        """Keep the channels of pixels, and of ``weights``, innermost or outermost: the same numbers at another speed.

        Backbones that do not convolve stay as they are.
        """
        self.channels_last = channels_last and self.convolutional
        inner = self.channels_last and weights
        self.backbone.to(memory_format=torch.channels_last if inner else torch.contiguous_format)

    def set_normalisation(self, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """How pixels are normalised, for values from 0 to 1: ``(x - mean) / std`` a channel; kept with the weights."""
        self.mean.copy_(torch.tensor(mean).view(-1, 1, 1))
        self.std.copy_(torch.tensor(std).view(-1, 1, 1))

    def lock(self, locked: bool) -> None:
        """Stop the backbone's learning, batch statistics included, or let it learn again."""
        self.locked = locked
        for part in (self.backbone, self.pool):
            part.requires_grad_(not locked)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.locked:
            self.backbone.eval()
            self.pool.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """``(N, F)`` from ``(N, 3, H, W)`` pixels, 0 to 255, best uint8; ``(N, F)`` features stay as they are."""
        if images.ndim == 2:
            return images
        if len(images) == 0:
            return self.mean.new_zeros(0, self.feature_width)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.locked):
            pixels = images.to(self.mean.dtype)
            if self.channels_last:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            scaled = (pixels - 255 * self.mean) / (255 * self.std)
            features: Tensor = self.pool(self.backbone(scaled))
        return features

    def forward(self, images: Tensor) -> Embedding:
        """Images as in `features` to an `Embedding` whose whole is ``(N, D)`` at unit length."""
        return embed(self.dropout(self.features(images)), self.head)


def build_image_tower(settings: ImageSettings, *, width: int) -> ImageTower:
    """An image tower with the weights that the settings name.

    Raises `UserError` if the model or the weights do not exist, or do not fit each other.
    """
    tower = ImageTower(settings, width=width)
    if settings.weights != "random":
        load_image_weights(tower, source=settings.weights, name=settings.name)
    return tower


class MapPool(nn.Module):
    """CLIP's attention pool (section 2.4) over the feature map of a model that has none of its own."""

    def __init__(self, *, features: int, side: int, channels_last: bool) -> None:
        super().__init__()
        self.channels_last: Final = channels_last
        self.attention: Final = AttentionPool2d(
            features, feat_size=side, out_features=features, head_dim=gcd(features, 64), qkv_separate=True
        )

    def forward(self, states: Tensor) -> Tensor:
        pooled: Tensor = self.attention(states.permute(0, 3, 1, 2) if self.channels_last else states)
        return pooled


def _backbone(settings: ImageSettings, *, width: int) -> Any:
    if settings.name.startswith("hf-hub:"):
        hub.require(settings.name.removeprefix("hf-hub:"), also="name one of timm's own models")
    try:
        with torch.device("meta"):
            plain = timm.create_model(settings.name, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"timm has no image model {settings.name!r}{suggest(settings.name, timm.list_models())}"
        ) from error
    try:
        model = timm.create_model(settings.name, **_arguments(plain, settings, width=width))
        read_first_token(model)
        if settings.checkpointing:
            model.set_grad_checkpointing(True)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"the image model {settings.name!r} cannot be built with {_asked(settings)}: {error!r}"
        ) from error
    return model


def _arguments(plain: Any, settings: ImageSettings, *, width: int) -> dict[str, Any]:
    """The arguments of `timm.create_model`, which differ from model to model."""
    known = inspect.signature(type(plain).__init__).parameters
    dropped = {"drop_path_rate": settings.drop_path, "patch_drop_rate": settings.patch_drop}
    arguments: dict[str, Any] = {name: rate for name, rate in dropped.items() if rate}
    for name in arguments:
        if name not in known:
            raise UserError(
                f"the image model {settings.name!r} has no {name}; set it to 0 or take a vision transformer"
            )
    if "img_size" in known:
        arguments["img_size"] = settings.size
    arguments["num_classes"] = width if settings.head == "none" and _ends_on_pool(plain) else 0
    if settings.pool == "map" and _ends_on_pool(plain):
        return arguments
    if settings.pool != "default":
        arguments["global_pool"] = "" if _needs_pool(plain, settings) else settings.pool
    return arguments


def _asked(settings: ImageSettings) -> str:
    return f"size {settings.size}, pool {settings.pool!r}, checkpointing {'on' if settings.checkpointing else 'off'}"


def _extra_pool(model: Any, settings: ImageSettings) -> nn.Module:
    if not _needs_pool(model, settings):
        return nn.Identity()
    side = ceil(settings.size / model.feature_info[-1]["reduction"])
    return MapPool(features=model.num_features, side=side, channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC")


def _needs_pool(model: Any, settings: ImageSettings) -> bool:
    return settings.pool == "map" and not _ends_on_pool(model) and not hasattr(model, "attn_pool")


def _ends_on_pool(model: Any) -> bool:
    return isinstance(getattr(model, "head", None), AttentionPool2d | RotAttentionPool2d)


def _feature_width(model: Any) -> int:
    return int(model.head.out_features if _ends_on_pool(model) else model.head_hidden_size)
