"""timm models as image towers."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unicl.errors import UserError
from unicl.towers.build import build_image_tower
from unicl.towers.image import ImageSettings, ImageTower

TINY = ImageSettings(name="test_vit", size=32)


def _pixels(size: int = 32, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "pool", "size"),
    [
        ("test_vit", "default", 32),
        ("test_vit", "avg", 32),
        ("test_vit", "map", 32),
        ("test_resnet", "default", 64),
        ("test_resnet", "map", 64),
        ("test_efficientnet", "avg", 64),
        ("test_byobnet", "map", 64),
        ("mobilenetv3_small_050", "default", 64),
        ("swin_tiny_patch4_window7_224", "map", 64),
        ("swin_tiny_patch4_window7_224", "default", 64),
        ("eva02_tiny_patch14_224", "token", 28),
        ("resnet50_clip", "default", 64),
    ],
)
def test_any_timm_model_is_a_tower(name: str, pool: Any, size: int) -> None:
    tower = ImageTower(ImageSettings(name=name, pool=pool, size=size), width=24).eval()
    embedding = tower(_pixels(size))
    assert embedding.features.shape == (2, tower.feature_width)
    assert embedding.whole.shape == (2, 24)
    torch.testing.assert_close(embedding.whole.norm(dim=1), torch.ones(2))
    embedding.whole.sum().backward()
    idle = [name for name, p in tower.named_parameters() if p.grad is None]
    assert idle == []


def test_clips_resnet_without_a_head_embeds_by_its_attention_pool() -> None:
    tower = ImageTower(ImageSettings(name="resnet50_clip", size=64, head="none"), width=24).eval()
    assert tower.feature_width == 24
    assert not list(tower.head.parameters())
    embedding = tower(_pixels(64))
    torch.testing.assert_close(embedding.whole, normalize(embedding.features, dim=-1))


def test_pixels_are_normalised_with_the_models_own_mean() -> None:
    tower = ImageTower(ImageSettings(name="test_vit", size=32), width=8).eval().double()
    model = timm.create_model("test_vit", img_size=32, num_classes=0).eval().double()
    model.load_state_dict(tower.backbone.state_dict())
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(tower.features(_pixels()), model((_pixels().double() / 255 - mean) / std))


def test_float_pixels_and_bytes_agree() -> None:
    tower = ImageTower(TINY, width=8).eval()
    assert torch.equal(tower.features(_pixels()), tower.features(_pixels().float()))


def test_features_pass_through_the_backbone_untouched() -> None:
    tower = ImageTower(TINY, width=8)
    features = torch.randn(3, tower.feature_width)
    assert tower.features(features) is features
    torch.testing.assert_close(tower(features).whole, normalize(tower.head(features), dim=-1))


def test_no_images_give_no_rows() -> None:
    embedding = ImageTower(replace(TINY, name="test_resnet"), width=8)(_pixels(count=0))
    assert embedding.whole.shape == (0, 8)


def test_a_locked_backbone_learns_nothing_and_its_head_does() -> None:
    tower = ImageTower(ImageSettings(name="test_resnet", size=64, locked=True), width=8).train()
    before = deepcopy(tower.backbone.state_dict())
    whole = tower(_pixels(64)).whole
    whole.sum().backward()
    assert not any(p.requires_grad for p in tower.backbone.parameters())
    assert not any(module.training for module in tower.backbone.modules())
    assert tower.head.training
    assert tower.head.weight.grad is not None
    assert not tower.features(_pixels(64)).requires_grad
    assert all(torch.equal(before[name], value) for name, value in tower.backbone.state_dict().items())


def test_a_backbone_can_be_unlocked_again() -> None:
    tower = ImageTower(ImageSettings(name="test_resnet", size=64, locked=True, pool="map"), width=8).train()
    tower.lock(False)
    assert all(module.training for module in tower.modules())
    tower(_pixels(64)).whole.sum().backward()
    assert all(p.grad is not None for p in tower.parameters())


def test_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    plain = ImageTower(TINY, width=8).double()
    saving = ImageTower(replace(TINY, checkpointing=True), width=8).double()
    saving.load_state_dict(plain.state_dict())
    for tower in (plain, saving):
        tower(_pixels()).whole[:, 0].sum().backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)


def test_drops_work_in_training_only() -> None:
    tower = ImageTower(replace(TINY, drop_path=0.5, patch_drop=0.5), width=8)
    torch.manual_seed(0)
    assert not torch.equal(tower.train().features(_pixels()), tower.features(_pixels()))
    assert torch.equal(tower.eval().features(_pixels()), tower.features(_pixels()))


def test_a_copy_is_a_tower_of_its_own() -> None:
    tower = ImageTower(TINY, width=8).eval()
    copy = deepcopy(tower)
    with torch.no_grad():
        tower.backbone.blocks[-1].mlp.fc2.weight.add_(1)
    assert not torch.equal(copy.features(_pixels()), tower.features(_pixels()))


def test_a_tower_moves_to_bfloat16() -> None:
    tower = ImageTower(TINY, width=8).to(torch.bfloat16)
    embedding = tower(_pixels())
    assert embedding.features.dtype == torch.bfloat16
    assert embedding.whole.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (ImageSettings(name="resnett18"), "no image model 'resnett18' .did you mean 'resnet18'"),
        (ImageSettings(name="test_resnet", pool="token"), "cannot be built with size 224, pool 'token'"),
        (ImageSettings(name="test_resnet", patch_drop=0.1), "has no patch_drop_rate"),
        (ImageSettings(name="test_resnet", head="none"), "use the head 'linear' or an embedding width of 96"),
        (ImageSettings(name="test_vit", pool="tokens"), "pool 'tokens'"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: ImageSettings, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        ImageTower(settings, width=8)


def test_random_weights_are_those_of_the_seed() -> None:
    towers = []
    for _ in range(2):
        torch.manual_seed(3)
        towers.append(build_image_tower(TINY, width=8).eval())
    assert torch.equal(towers[0].features(_pixels()), towers[1].features(_pixels()))
