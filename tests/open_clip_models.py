"""Small random models of open_clip, and what it means that one of ours is the same model."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor, nn

from unicl.errors import UserError
from unicl.model import TwoTowers
from unicl.towers.weights import layouts
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.published import Published

WIDTH, SIZE = 24, 64
VISION = {"layers": 2, "width": 64, "head_width": 64, "patch_size": 16, "image_size": SIZE}
RESNET = {"layers": (3, 4, 6, 3), "width": 64, "image_size": SIZE}
TEXT = {"context_length": 12, "vocab_size": 49_408, "width": 64, "heads": 1, "layers": 2}
TEXTS = ("a red dog", "", "One word &amp; another!", "many words " * 30)

State = dict[str, Tensor]
DAMAGES: tuple[Callable[[State, str], State], ...] = (
    lambda state, key: {k: v for k, v in state.items() if k != key},
    lambda state, key: {k if k != key else f"{k}_other": v for k, v in state.items()},
    lambda state, key: state | {key: torch.zeros(*state[key].shape, 2)},
)
"""One entry missing, renamed, and of another shape."""


def build(vision: dict[str, Any], text: dict[str, Any], *, custom: bool = False, **more: Any) -> nn.Module:
    """A model of open_clip's, no weight of which is zero or one by chance of its start."""
    torch.manual_seed(0)
    kind = CustomTextCLIP if custom else CLIP
    return shaken(kind(WIDTH, CLIPVisionCfg(**vision), CLIPTextCfg(**text), **more))


def shaken(model: nn.Module) -> nn.Module:
    """The model with a little noise on every parameter, because zeros would hide a wrong place."""
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def config_of(vision: dict[str, Any], text: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What open_clip_config.json says of such a model."""
    return {"model_cfg": {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text, **more}, "preprocess_cfg": {}}


def read(place: Path) -> Published:
    """The model in a file or folder, by the layout that claims it."""
    return layouts.read(open_checkpoint(place))


@torch.no_grad()
def assert_same(ours: TwoTowers, theirs: Any, *, tokens: Tensor, texts: Sequence[str] = TEXTS) -> None:
    """Equal normalised features of images and texts; ``tokens`` are theirs for the texts."""
    size = ours.settings.image.size
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    scaled = (pixels / 255 - ours.image.mean) / ours.image.std
    wanted = theirs.eval().encode_image(scaled, normalize=True)
    torch.testing.assert_close(ours.embed_image(pixels), wanted, rtol=0, atol=1e-5)
    wanted = theirs.encode_text(tokens, normalize=True)
    torch.testing.assert_close(ours.embed_text(texts), wanted, rtol=0, atol=1e-5)
    found = ours.objective.scales()["instances"]
    assert found.value == pytest.approx(theirs.logit_scale.exp().item(), rel=1e-5)


def clip_tokens(context: int = 12, texts: Sequence[str] = TEXTS) -> Tensor:
    """CLIP's tokens by open_clip's own tokenizer."""
    return open_clip.SimpleTokenizer(context_length=context)(list(texts))


def assert_each_damage_is_named(
    state: State, *, keys: Sequence[str] = (), config: Mapping[str, Any] | None = None
) -> None:
    """Whatever entry is missing, renamed or of another shape, the error names it; one of each kind if none is given."""
    kinds = {re.sub(r"\d+", "0", key): key for key in state}
    for key in keys or kinds.values():
        for damage in DAMAGES:
            found = Checkpoint(place=Path("damaged.pt"), state=damage(dict(state), key), config=config or {})
            with pytest.raises(UserError) as raised:
                layouts.read(found)
            assert key in str(raised.value), f"{key} is not in {raised.value}"
