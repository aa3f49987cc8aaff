"""A timm model as an image tower: uint8 pixels to embeddings."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil, gcd
from typing import Any, Final, Literal, Self

import timm
import torch
from timm.layers import AttentionPool2d, LayerNorm2d, RotAttentionPool2d
from torch import Tensor, nn

from unicl.data.image import Frame
from unicl.errors import UserError, suggest
from unicl.space import Embedding, Parts
from unicl.towers.heads import HeadKind, Option, embed, make_head
from unicl.towers.keras import end_on_last_stage
from unicl.towers.last import read_first_token
from unicl.towers.lora import adapt, check_rank, hold_statistics, let_learn
from unicl.towers.parts import ImageParts, Look, PartsHead, image_states, mean_of, unpacked, with_parts
from unicl.towers.weights import hub


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """What an image tower is made of.

    * ``name``: any timm model; ``size``: side of the square images in pixels.
    * ``pool``: "default" is the model's own; "avg" the mean of all places; "token" the class token; "map" a learned
      query that attends to all places (CLIP, section 2.4); "stage" the mean of the last stage of an EfficientNet of
      TensorFlow's, without the wide layer behind it (ALIGN, section 4.1): see `unicl.towers.keras`; "parts" the mean of
      the parts (FILIP has no other whole vector).
    * ``parts``: which places are embedded for themselves as well; None is none of them.
    * ``options``: further arguments of timm's model, such as ``{"depth": 6}``.
    * ``eps``: of all layer norms; None is the model's own.
    * ``enlarged``: the side to which pixels are enlarged before the backbone sees them; 0 leaves them (GLoRIA: 299).
    * ``frame``: how a picture is fitted into the square when nothing is augmented.
    * ``mean`` and ``std``: what normalises values from 0 to 1, by channel; None are the model's own.
    * ``head``: see `unicl.towers.heads.make_head`. With "none", a model that ends on an attention pool (CLIP's
      ResNets) lets that pool's output layer make the embedding.
    * ``weights``: "random", "hub", "package:NAME", or a file or folder.
    * ``locked``: the backbone does not learn (LiT, section 3); its head still does.
    * ``lora``: the rank of adapters that learn in the backbone's place; 0 is none: see `unicl.towers.lora`.
    * ``drop_path``, ``patch_drop``, ``dropout``: shares of residual branches, of patches and of features (before the
      head) dropped in training.
    """

    name: str = "vit_tiny_patch16_224"
    size: int = 224
    options: Mapping[str, Option] = field(default_factory=dict)
    eps: float | None = None
    frame: Frame = Frame()
    enlarged: int = 0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    pool: Literal["default", "avg", "token", "map", "stage", "parts"] = "default"
    parts: ImageParts | None = None
    head: HeadKind = "linear"
    weights: str = "random"
    locked: bool = False
    lora: int = 0
    drop_path: float = 0.0
    patch_drop: float = 0.0
    dropout: float = 0.0
    checkpointing: bool = False


class ImageTower(nn.Module):
    """A timm backbone and a head; ``width`` is the embedding's. Weights are random: see `unicl.towers.build`.

    Raises `UserError` if timm has no such model or the model cannot be built so.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ImageSettings, *, width: int) -> None:
        super().__init__()
        self.settings = settings
        self.backbone: Final = _backbone(settings, width=width)
        self.pool: Final = _extra_pool(self.backbone, settings)
        self.feature_width: Final[int] = _feature_width(self.backbone, settings)
        self.dropout: Final = nn.Dropout(settings.dropout)
        self.head: Final = make_head(settings.head, features=self.feature_width, width=width)
        self.parts: Final = _parts_head(self.backbone, settings, width=width)
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))
        shown = self.backbone.pretrained_cfg
        self.set_normalisation(mean=settings.mean or shown["mean"], std=settings.std or shown["std"])
        self.channels_last: bool = self.convolutional
        self.locked = False
        self.held: list[nn.Module] = []
        check_rank(settings.lora, locked=settings.locked)
        if settings.lora:
            adapt(self.backbone, rank=settings.lora, probe=self._probe)
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
        self.held = [self.backbone, self.pool] if locked else []
        let_learn(self.backbone, learns=not locked)
        self.pool.requires_grad_(not locked)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.held:
            module.eval()
        if self.settings.lora:
            hold_statistics(self.backbone)
        return self

    def features(self, images: Tensor) -> Tensor:
        """``(N, F)`` from ``(N, 3, H, W)`` pixels, 0 to 255, best uint8; rows of `Look.packed` stay as they are."""
        return self.look(images).features

    def look(self, images: Tensor) -> Look:
        """What the backbone says of images as in `features`, and of their parts if the settings ask for them.

        Raises `UserError` for features without the parts that are asked for, or pixels of a size it cannot read.
        """
        if images.ndim == 2:
            return self._kept(images)
        if len(images) == 0:
            return self._nothing()
        _check_size(self.backbone, images, settings=self.settings)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.locked):
            return self._look(self._scaled(images))

    def _kept(self, rows: Tensor) -> Look:
        if self.settings.parts is None:
            return Look(features=rows)
        if rows.shape[1] == self.feature_width:
            raise UserError("features of whole pictures have no parts; give the tower pixels")
        return unpacked(rows, features=self.feature_width, states=_states_width(self.backbone, self.settings))

    def _look(self, scaled: Tensor) -> Look:
        asked = self.settings.parts
        if asked is None:
            return Look(features=self.pool(self.backbone(scaled)))
        if asked.stage is None:
            states = self.backbone.forward_features(scaled)
            found = _norm_of_mean(self.backbone, places=states.ndim)(states)
        else:
            states, [found] = self.backbone.forward_intermediates(
                scaled, indices=[asked.stage], output_fmt="NCHW", norm=False
            )
        prefix = 0 if asked.first or asked.stage is not None else getattr(self.backbone, "num_prefix_tokens", 0)
        inner = asked.stage is None and getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        parts = image_states(found, prefix=prefix, channels_last=inner)
        pooled = self.settings.pool == "parts"
        return Look(features=mean_of(parts) if pooled else self.pool(self.backbone.forward_head(states)), parts=parts)

    def _scaled(self, images: Tensor) -> Tensor:
        pixels = images.to(self.mean.dtype)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        if self.settings.enlarged:
            side = (self.settings.enlarged, self.settings.enlarged)
            pixels = nn.functional.interpolate(pixels, size=side, mode="bilinear", align_corners=True)
        return (pixels - 255 * self.mean) / (255 * self.std)

    def _nothing(self) -> Look:
        parts = None
        if self.parts is not None:
            values = self.mean.new_zeros(0, 1, _states_width(self.backbone, self.settings))
            parts = Parts(values=values, mask=values.new_ones(0, 1, dtype=torch.bool))
        return Look(features=self.mean.new_zeros(0, self.feature_width), parts=parts)

    def _probe(self) -> None:
        side = self.settings.enlarged or self.settings.size
        self.pool(self.backbone(self.mean.new_zeros(1, 3, side, side)))

    def forward(self, images: Tensor | Look) -> Embedding:
        """Images as in `features`, or what `look` said of them, to an `Embedding` of whole ``(N, D)`` and its parts."""
        look = images if isinstance(images, Look) else self.look(images)
        if self.parts is None or look.parts is None:
            return embed(self.dropout(look.features), self.head)
        states = replace(look.parts, values=self.dropout(look.parts.values))
        parts = self.parts(states, head=self.head)
        if self.settings.pool == "parts":
            return with_parts(look.features, parts)
        return replace(embed(self.dropout(look.features), self.head), parts=parts)


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
            plain = timm.create_model(settings.name, num_classes=0, **settings.options)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"timm has no image model {settings.name!r}{suggest(settings.name, timm.list_models())}"
        ) from error
    except (AssertionError, TypeError, ValueError) as error:
        options = dict(settings.options)
        raise UserError(f"the image model {settings.name!r} cannot be built with {options}: {error!r}") from error
    try:
        model = timm.create_model(settings.name, **settings.options, **_arguments(plain, settings, width=width))
        if settings.parts is None:
            read_first_token(model)
        if settings.pool == "stage":
            end_on_last_stage(model)
        _set_eps(model, settings.eps)
        if settings.checkpointing:
            model.set_grad_checkpointing(True)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"the image model {settings.name!r} cannot be built with {_asked(settings)}: {error!r}"
        ) from error
    return model


def _set_eps(model: nn.Module, eps: float | None) -> None:
    # timm takes it only inside a function, which no settings file can hold.
    for part in model.modules():
        if eps is not None and isinstance(part, nn.LayerNorm):
            part.eps = eps


def timm_arguments(settings: ImageSettings, *, width: int) -> dict[str, Any]:
    """What `timm.create_model` is called with for these settings, beside the name."""
    with torch.device("meta"):
        plain = timm.create_model(settings.name, num_classes=0, **settings.options)
    return {**settings.options, **_arguments(plain, settings, width=width)}


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
        arguments["img_size"] = settings.enlarged or settings.size
    arguments["num_classes"] = width if settings.head == "none" and _ends_on_pool(plain) else 0
    if settings.pool == "map" and _ends_on_pool(plain):
        return arguments
    if settings.pool not in ("default", "stage", "parts"):
        arguments["global_pool"] = "" if _needs_pool(plain, settings) else settings.pool
    return arguments


def _asked(settings: ImageSettings) -> str:
    return f"size {settings.size}, pool {settings.pool!r}, checkpointing {'on' if settings.checkpointing else 'off'}"


def _extra_pool(model: Any, settings: ImageSettings) -> nn.Module:
    if not _needs_pool(model, settings):
        return nn.Identity()
    side = ceil((settings.enlarged or settings.size) / model.feature_info[-1]["reduction"])
    return MapPool(features=model.num_features, side=side, channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC")


def _needs_pool(model: Any, settings: ImageSettings) -> bool:
    return settings.pool == "map" and not _ends_on_pool(model) and not hasattr(model, "attn_pool")


def _ends_on_pool(model: Any) -> bool:
    return isinstance(getattr(model, "head", None), AttentionPool2d | RotAttentionPool2d)


def _feature_width(model: Any, settings: ImageSettings) -> int:
    if settings.pool == "parts":
        return _states_width(model, settings)
    return int(model.head.out_features if _ends_on_pool(model) else model.head_hidden_size)


def _states_width(model: Any, settings: ImageSettings) -> int:
    stage = None if settings.parts is None else settings.parts.stage
    return int(model.num_features if stage is None else model.feature_info[stage]["num_chs"])


def _norm_of_mean(model: Any, *, places: int) -> nn.Module:
    """The norm of a model that norms the mean of its places and not these (ViT with fc_norm, ConvNeXt)."""
    if places == 4 and getattr(model, "output_fmt", "NCHW") == "NCHW":
        norm = getattr(getattr(model, "head", None), "norm", None)
        return norm if isinstance(norm, LayerNorm2d) else nn.Identity()
    norm = getattr(model, "fc_norm", None)
    return norm if isinstance(norm, nn.LayerNorm) else nn.Identity()


def _parts_head(model: Any, settings: ImageSettings, *, width: int) -> PartsHead | None:
    asked = settings.parts
    if asked is None and settings.pool == "parts":
        raise UserError("the pool 'parts' is the mean of parts, but none are asked for; set image.parts too")
    if asked is None:
        return None
    _check_stage(model, settings, stage=asked.stage)
    features = _states_width(model, settings)
    if asked.head is None and features != _feature_width(model, settings):
        raise UserError(
            f"parts of {features} features cannot share the head of a whole picture, which has "
            f"{_feature_width(model, settings)}; give them one of their own with image.parts.head=linear"
        )
    return PartsHead(asked, features=features, width=width)


def _check_stage(model: Any, settings: ImageSettings, *, stage: int | None) -> None:
    if stage is None:
        return
    levels = len(getattr(model, "feature_info", ())) if hasattr(model, "forward_intermediates") else 0
    if not 0 <= stage < levels:
        known = f"the maps 0 to {levels - 1}" if levels else "no maps of its own"
        raise UserError(
            f"the image model {settings.name!r} has {known}, but its parts are to come from {stage}; choose one of "
            "these, or leave image.parts.stage out"
        )
    if settings.patch_drop:
        raise UserError("a model that drops patches has no whole maps; set patch_drop to 0, or leave parts.stage out")


def _check_size(model: Any, images: Tensor, *, settings: ImageSettings) -> None:
    """A transformer has learned its places for one size of pictures."""
    places = getattr(model, "patch_embed", None)
    wanted = getattr(places, "img_size", None) if getattr(places, "strict_img_size", False) else None
    came = tuple(images.shape[-2:])
    if wanted is not None and not settings.enlarged and came != tuple(wanted):
        raise UserError(
            f"the image tower {settings.name!r} reads pictures of {wanted[0]} x {wanted[1]} pixels, but these have "
            f"{came[0]} x {came[1]}; fit them first (unicl.data.image.fit), or train with --image-size {came[0]}"
        )
