"""Sizes of image towers between timm's words and transformers'."""

import pytest
import torch
from timm import create_model
from transformers import CLIPVisionConfig, SiglipVisionConfig, ViTConfig

from transformers_cases import SIDE, VISION, save_clip
from unicl.errors import UserError
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.weights.checkpoint import open_checkpoint
from unicl.towers.weights.transformers_files import Framing
from unicl.towers.weights.transformers_images import (
    clip_image,
    framing_of,
    is_clip,
    is_plain,
    siglip_image,
    vision_fields,
    vit_image,
    vit_of,
    vit_options,
)

SQUARE = Framing(size=SIDE)
MADE = (
    (CLIPVisionConfig(**VISION), clip_image),
    (CLIPVisionConfig(**VISION | {"layer_norm_eps": 1e-3, "hidden_act": "gelu_pytorch_tanh"}), clip_image),
    (ViTConfig(**VISION), vit_image),
    (SiglipVisionConfig(**VISION | {"layer_norm_eps": 1e-3}), siglip_image),
)


@pytest.mark.parametrize(("config", "settings"), MADE)
def test_sizes_come_back_from_the_tower_that_is_built_of_them(config, settings):
    vit = vit_of(settings(config, framing=SQUARE), width=VISION["hidden_size"])
    assert vit is not None
    fields = vision_fields(vit, size=SIDE)
    assert fields == {key: getattr(config, key) for key in fields}
    assert set(VISION) <= set(fields)


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ({"patch_size": 32}, "vit_base_patch32_clip_quickgelu_224"),
        ({"patch_size": 16}, "vit_base_patch16_clip_quickgelu_224"),
        ({"patch_size": 16, "hidden_act": "gelu"}, "vit_base_patch16_clip_224"),
        (
            {"patch_size": 14, "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}
            | {"intermediate_size": 5120, "hidden_act": "gelu"},
            "vit_huge_patch14_clip_224",
        ),
    ],
)
def test_a_published_size_has_timms_own_name_and_nothing_to_add(sizes, name):
    config = CLIPVisionConfig(**sizes)
    found = clip_image(config, framing=Framing(size=224))
    assert (found.name, dict(found.options), found.eps) == (name, {}, None)
    assert vision_fields(vit_of(found, width=512), size=224)["num_attention_heads"] == config.num_attention_heads


def test_an_activation_without_a_name_of_timms_is_given_as_an_option():
    found = clip_image(CLIPVisionConfig(patch_size=32, hidden_act="gelu_new"), framing=Framing(size=224))
    assert found.options["act_layer"] == "gelu_tanh"


@pytest.mark.parametrize(("width", "inner"), [(1152, 4304), (768, 3072), (36, 131), (1408, 6144), (49, 113)])
def test_a_ratio_gives_exactly_the_inner_width(width, inner):
    options = vit_options(CLIPVisionConfig(hidden_size=width, intermediate_size=inner, num_attention_heads=1))
    with torch.device("meta"):
        model = create_model(
            "vit_base_patch32_clip_224", embed_dim=width, num_heads=1, depth=1, mlp_ratio=options["mlp_ratio"]
        )
    assert model.blocks[0].mlp.fc1.out_features == inner


@pytest.mark.parametrize(
    "special",
    [
        {"init_values": 1e-3},
        {"qk_norm": True},
        {"reg_tokens": 2},
        {"fc_norm": True},
        {"proj_bias": False},
        {"pos_embed": "none"},
        {"act_layer": "silu"},
        {"no_embed_class": True},
    ],
)
def test_a_vision_transformer_with_something_special_is_not_plain(special):
    plain = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
    base = ImageSettings(name="vit_base_patch32_clip_224", size=SIDE, options=plain)
    assert is_clip(vit_of(base, width=16))
    changed = ImageSettings(name=base.name, size=SIDE, options=plain | special)
    assert vit_of(changed, width=16) is None


@pytest.mark.parametrize(
    ("name", "clip", "plain"),
    [
        ("vit_base_patch32_clip_224", True, False),
        ("vit_base_patch16_224", False, True),
        ("vit_base_patch16_siglip_224", False, False),
        ("vit_base_patch16_siglip_gap_224", False, False),
    ],
)
def test_only_the_whole_of_a_kind_is_that_kind(name, clip, plain):
    options = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    vit = vit_of(ImageSettings(name=name, size=64, options=options), width=16)
    assert (is_clip(vit), is_plain(vit)) == (clip, plain)
    assert vit_of(ImageSettings(name="test_resnet", size=64), width=16) is None


def test_the_eps_of_settings_reaches_every_norm():
    tower = ImageTower(ImageSettings(name="test_vit", size=SIDE, eps=0.25), width=8)
    assert {part.eps for part in tower.modules() if isinstance(part, torch.nn.LayerNorm)} == {0.25}


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        (CLIPVisionConfig(hidden_act="silu"), clip_image, "'silu'"),
        (CLIPVisionConfig(num_channels=4), clip_image, "4 channels"),
        (ViTConfig(image_size=(32, 64)), vit_image, "image_size"),
        (ViTConfig(pooler_output_size=99), vit_image, "99"),
    ],
)
def test_what_no_tower_of_ours_has_is_named(config, settings, said):
    with pytest.raises(UserError, match=said):
        settings(config, framing=SQUARE)


def test_a_crop_of_another_size_than_the_tower_reads_is_refused(tmp_path):
    save_clip(tmp_path)
    found = open_checkpoint(tmp_path)
    assert framing_of(found, size=SIDE).size == SIDE
    with pytest.raises(UserError, match="cuts pictures to 32 pixels, but its image tower reads 64"):
        framing_of(found, size=64)
