"""open_clip's checkpoints: image towers of both kinds, configurations, and what cannot be read."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIPVisionCfg
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from open_clip_models import (
    RESNET,
    SIZE,
    TEXT,
    VISION,
    WIDTH,
    assert_each_damage_is_named,
    assert_same,
    build,
    clip_tokens,
    config_of,
    read,
)
from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.published import model_of
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, TextTower
from unicl.towers.weights import open_clip as layout
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.load import fit_positions, load_strict
from unicl.towers.weights.open_clip import tower_state

TRUNK = {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160}
VARIANTS: dict[str, dict[str, Any]] = {
    "another width of heads": VISION | {"head_width": 32},
    "wider blocks and tanh": VISION | {"mlp_ratio": 3.7362, "act_kwargs": {"approximate": "tanh"}},
    "scaled branches": VISION | {"ls_init_value": 0.1},
    "no first norm, mean before the last": VISION
    | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "mean after the last norm": VISION | {"pool_type": "avg"},
    "ResNet": RESNET,
    "timm, class token": TRUNK,
    "timm, mean": TRUNK | {"timm_pool": "avg"},
    "timm, its own pool and a bias": TRUNK | {"timm_pool": "", "timm_proj_bias": True},
    "timm, two matrices": TRUNK | {"timm_proj": "mlp"},
    "timm, its classifier": TRUNK | {"timm_proj": ""},
    "timm, its attention": {
        "timm_model_name": "test_vit4",
        "timm_pool": "map",
        "timm_proj": "",
        "image_size": 160,
    },
    "timm, convolutions": {"timm_model_name": "test_convnext", "timm_pool": "", "image_size": 160},
    "timm, convolutions and their classifier": {
        "timm_model_name": "test_efficientnet",
        "timm_pool": "avg",
        "timm_proj": None,
        "image_size": 160,
    },
}


PUBLISHED = {
    "ViT-B-32": 151_277_313,
    "ViT-L-14": 427_616_513,
    "ViT-H-14": 986_109_441,
    "ViT-B-16-SigLIP": 203_155_970,
    "ViT-L-14-CLIPA": None,
    "convnext_base": None,
    "EVA02-B-16": None,
    "MobileCLIP-B": None,
}
"""What open_clip counts itself is asked for all of them."""


def _folder(folder: Path, model: nn.Module, config: dict[str, Any]) -> Path:
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_image_tower_gives_open_clips_numbers(name: str, tmp_path: Path) -> None:
    vision = VARIANTS[name]
    theirs = build(vision, TEXT, custom="timm" in name)
    published = read(_folder(tmp_path, theirs, config_of(vision, TEXT)))
    assert published.origin == "open_clip (folder)"
    assert_same(model_of(published), theirs, tokens=clip_tokens())


@pytest.mark.parametrize("container", ["state_dict", ""])
def test_a_bare_state_dict_is_taken_for_clip_with_gelu_and_says_so(container: str, tmp_path: Path) -> None:
    theirs = build(VISION, TEXT)
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"epoch": 3, container: state} if container else state, tmp_path / "a.pt")
    published = read(tmp_path / "a.pt")
    assert published.origin == "open_clip (state dict)"
    assert "taken for GELU" in published.notes[0]
    assert_same(model_of(published), theirs, tokens=clip_tokens())


def test_a_configuration_beside_the_file_says_quickgelu(tmp_path: Path) -> None:
    theirs = build(VISION, TEXT, quick_gelu=True)
    folder = _folder(tmp_path, theirs, config_of(VISION, TEXT, quick_gelu=True))
    published = read(folder / "open_clip_model.safetensors")
    assert_same(model_of(published), theirs, tokens=clip_tokens())


@pytest.mark.parametrize("custom", [False, True])
def test_both_classes_and_a_bias_of_the_scores_are_read(custom: bool, tmp_path: Path) -> None:
    theirs = build(VISION, TEXT, custom=custom, init_logit_bias=-10, nonscalar_logit_scale=True)
    published = read(_folder(tmp_path, theirs, config_of(VISION, TEXT, init_logit_bias=-10)))
    assert published.bias == pytest.approx(theirs.logit_bias.item())
    assert published.scale == pytest.approx(theirs.logit_scale.exp().item())
    assert_same(model_of(published), theirs, tokens=clip_tokens())


def test_preprocessing_travels_with_the_weights(tmp_path: Path) -> None:
    shown = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
    config = config_of(VISION, TEXT) | {"preprocess_cfg": shown}
    published = read(_folder(tmp_path, build(VISION, TEXT), config))
    assert published.image is not None
    assert published.image.frame == Frame(mode="squash", interpolation="bilinear")
    assert (published.mean, published.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_numbers_of_parameters(name: str, tmp_path: Path) -> None:
    config = open_clip.get_model_config(name)
    text = {key: value for key, value in config["text_cfg"].items() if not key.startswith(("hf_", "tokenizer_"))}
    # The tokenizer's files are not at hand: CLIP's vocabulary takes their place, and its entries are counted apart.
    rows = text.get("vocab_size", 49_408) - 49_408
    kind = open_clip.model.CustomTextCLIP if config.pop("custom_text", False) else open_clip.model.CLIP
    config["text_cfg"] = text | {"vocab_size": 49_408}
    with torch.device("meta"):
        theirs = kind(**config)
    found = layout.read(Checkpoint(place=tmp_path, state=theirs.state_dict(), config={"model_cfg": config}))
    own = sum(value.numel() for key, value in found.state.items() if "running" not in key and "batches" not in key)
    # timm's patch embedding has a bias where there is no norm behind it; it is zero.
    extra = config["vision_cfg"].get("width", 0) if config["vision_cfg"].get("no_ln_pre") else 0
    assert own == sum(p.numel() for p in theirs.parameters()) + extra
    assert PUBLISHED[name] in (None, own - extra + rows * config["text_cfg"]["width"])


def test_one_wrong_entry_is_named() -> None:
    assert_each_damage_is_named(build(VISION | {"layers": 1}, TEXT | {"layers": 1}).state_dict())


@pytest.mark.slow
def test_one_wrong_entry_of_a_timm_tower_is_named() -> None:
    state = build(TRUNK, TEXT, custom=True).state_dict()
    keys = [
        "visual.trunk.pos_embed",
        "visual.trunk.blocks.1.attn.qkv.bias",
        "visual.head.proj.weight",
        "text.text_projection",
    ]
    assert_each_damage_is_named(state, keys=keys, config=config_of(TRUNK, TEXT))


@pytest.mark.parametrize(
    ("vision", "text", "more", "reason"),
    [
        ({"attentional_pool": True}, {}, {}, "attentional_pool: True"),
        ({"qk_norm": True}, {}, {}, "qk_norm: True"),
        ({"norm_kwargs": {"eps": 1e-3}}, {}, {}, "eps"),
        ({"timm_model_name": "test_vit", "timm_pool": "abs_attn"}, {}, {}, "timm_pool 'abs_attn'"),
        ({}, {"embed_cls": True}, {}, "embed_cls: True"),
        ({}, {"pool_type": "none"}, {}, "pools texts by 'none'"),
        ({}, {}, {"multimodal_cfg": {"width": 8}}, "CoCa"),
    ],
)
def test_what_is_not_known_here_is_refused(vision: Any, text: Any, more: Any, reason: str, tmp_path: Path) -> None:
    config = config_of(VISION | vision, TEXT | text, **more)
    with pytest.raises(UserError, match=reason):
        read(_folder(tmp_path, build(VISION, TEXT), config))


def test_a_timm_tower_without_its_name_says_what_is_missing(tmp_path: Path) -> None:
    torch.save(build(TRUNK, TEXT, custom=True).state_dict(), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"does not say which; put its open_clip_config\.json beside it"):
        read(tmp_path / "a.pt")


def test_a_broken_configuration_says_so(tmp_path: Path) -> None:
    folder = _folder(tmp_path, build(VISION, TEXT), {})
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read(folder / "open_clip_model.safetensors")


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients under the names of the weights, so that they can travel the same way as weights."""
    zeros = {name: torch.zeros_like(value) for name, value in module.state_dict().items()}
    return zeros | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True])
def test_images_give_the_numbers_and_gradients_of_open_clip(training: bool) -> None:
    theirs = build(VISION, TEXT, quick_gelu=True).double().train(training)
    sizes = {"patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 1}
    settings = ImageSettings(name="vit_base_patch16_clip_quickgelu_224", size=SIZE, options=sizes)
    tower = ImageTower(settings, width=WIDTH).double().train(training)
    load_strict(tower, tower_state(theirs.state_dict(), tower, side="image", source="theirs"), source="theirs")
    pixels = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    direction = torch.randn(3, WIDTH, dtype=torch.float64)

    wanted = normalize(theirs.encode_image((pixels.double() / 255 - tower.mean) / tower.std), dim=-1)
    found = tower(pixels).whole
    (wanted * direction).sum().backward()
    (found * direction).sum().backward()

    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    moved = tower_state(_gradients(theirs), tower, side="image", source="theirs")
    for name, parameter in tower.named_parameters():
        torch.testing.assert_close(parameter.grad, moved[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("length", [7, 12])
def test_texts_give_the_numbers_and_gradients_of_open_clip(length: int) -> None:
    theirs = build(VISION, TEXT | {"vocab_size": 50}, quick_gelu=True).double()
    settings = TextSettings(layers=2, dim=64, heads=1, context=12)
    tower = TextTower(settings, width=WIDTH, vocab_size=50, eos_id=49, pad_id=0).double()
    load_strict(tower, tower_state(theirs.state_dict(), tower, side="text", source="theirs"), source="theirs")
    mask = torch.arange(12) < torch.tensor([[3], [7], [5]])
    tokens = torch.randint(1, 49, (3, 12)).where(mask, 0)
    tokens[torch.arange(3), mask.sum(1) - 1] = 49
    direction = torch.randn(3, WIDTH, dtype=torch.float64)

    wanted = normalize(theirs.encode_text(tokens), dim=-1)
    found = tower(tokens[:, :length], mask[:, :length]).whole
    (wanted * direction).sum().backward()
    (found * direction).sum().backward()

    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    moved = tower_state(_gradients(theirs), tower, side="text", source="theirs")
    for name, parameter in tower.named_parameters():
        torch.testing.assert_close(parameter.grad, moved[name], rtol=1e-9, atol=1e-11, msg=name)


def test_positions_of_images_are_resampled_as_open_clip_does() -> None:
    theirs = build(VISION, TEXT)
    sizes = {"patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 1}
    tower = ImageTower(ImageSettings(name="vit_base_patch16_clip_224", size=96, options=sizes), width=WIDTH)
    found = fit_positions(theirs.state_dict(), tower)["visual.positional_embedding"]
    state = theirs.state_dict()
    larger = open_clip.model.CLIP(WIDTH, CLIPVisionCfg(**(VISION | {"image_size": 96})), open_clip.CLIPTextCfg(**TEXT))
    open_clip.model.resize_pos_embed(state, larger)
    torch.testing.assert_close(found, state["visual.positional_embedding"])


def test_a_shorter_context_takes_the_first_positions() -> None:
    theirs = build(VISION, TEXT | {"vocab_size": 50})
    tower = TextTower(
        TextSettings(layers=2, dim=64, heads=1, context=8), width=WIDTH, vocab_size=50, eos_id=49, pad_id=0
    )
    found = fit_positions(theirs.state_dict(), tower)["positional_embedding"]
    assert torch.equal(found, theirs.state_dict()["positional_embedding"][:8])


def test_it_is_recognised_by_its_towers(tmp_path: Path) -> None:
    torch.save(build(VISION, TEXT).state_dict(), tmp_path / "a.pt")
    torch.save(ImageTower(ImageSettings(name="test_vit", size=32), width=8).state_dict(), tmp_path / "b.pt")
    assert layout.recognises(open_checkpoint(tmp_path / "a.pt"))
    assert not layout.recognises(open_checkpoint(tmp_path / "b.pt"))
    assert layout.is_quick(open_checkpoint(tmp_path / "a.pt")) is None
