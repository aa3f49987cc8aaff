import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from checkpoint_cases import wrong_by_one
from original_towers import Swin, shake
from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.published import model_of
from unicl.towers.weights import image_only
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.published import wanted

VIT = {"patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "img_size": 32, "num_classes": 0}


def timm_vit(**options):
    return shake(timm.create_model("vit_base_patch16_224", **VIT | options))


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def resnet18():
    model = shake(torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5))
    return model.state_dict(), headless(model, "fc"), 64


def headless(model, head):
    setattr(model, head, nn.Identity())
    return model


def torchvision_vit():
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=128, mlp_dim=192, num_classes=5
    )
    return shake(model).state_dict(), headless(model, "heads"), 32


def torchvision_convnext():
    setting = torchvision.models.convnext.CNBlockConfig
    blocks = [setting(16, 32, 1), setting(32, 48, 2), setting(48, 64, 1), setting(64, None, 1)]
    model = shake(torchvision.models.ConvNeXt(blocks, num_classes=5))
    state = model.state_dict()
    model.classifier[2] = nn.Identity()
    return state, model, 64


def torchvision_swin():
    sizes = {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": [7, 7]}
    model = shake(torchvision.models.SwinTransformer(patch_size=[4, 4], num_classes=5, **sizes))
    return model.state_dict(), headless(model, "head"), 224


def microsoft_swin():
    model = shake(Swin(size=56, width=16, depths=(2, 1), heads=(2, 4), classes=5))
    return model.state_dict(), model, 56


def dino():
    model = timm_vit()
    state = prefixed(model.state_dict(), "backbone.")
    return {"teacher": state | {"head.last_layer.weight": torch.zeros(3, 3)}, "epoch": 4}, model, 32


def moco():
    model = timm_vit()
    state = prefixed(model.state_dict(), "module.base_encoder.")
    state |= {"module.base_encoder.head.0.weight": torch.zeros(3, 3), "module.predictor.0.weight": torch.zeros(2)}
    return {"state_dict": state | prefixed(model.state_dict(), "module.momentum_encoder.")}, model, 32


def mae():
    model = timm_vit()
    more = {"mask_token": torch.zeros(1, 1, 64), "decoder_blocks.0.norm1.weight": torch.zeros(64)}
    return {"model": model.state_dict() | more | {"decoder_embed.weight": torch.zeros(64, 128)}}, model, 32


def dinov2():
    """With layer scales and registers; timm converts such a file itself, and is the model to compare with."""
    model = timm_vit(init_values=0.5, reg_tokens=4, no_embed_class=True)
    state = model.state_dict()
    first = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(5))
    theirs = {key: value for key, value in state.items() if key not in ("reg_token", "cls_token", "pos_embed")}
    theirs |= {
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - first,
        "pos_embed": torch.cat([first, state["pos_embed"]], dim=1),
        "mask_token": torch.zeros(1, 128),
    }
    again = timm.create_model("vit_base_patch16_224", **VIT, init_values=0.5, reg_tokens=4, no_embed_class=True).eval()
    again.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(theirs), again))
    return theirs, again, 32


def averaged():
    model = timm_vit(class_token=False, global_pool="avg")
    return model.state_dict(), model, 32


CASES = [
    resnet18,
    torchvision_vit,
    torchvision_convnext,
    torchvision_swin,
    microsoft_swin,
    dino,
    moco,
    mae,
    dinov2,
    averaged,
]


def opened(folder, state):
    torch.save(state, folder / "image.pth")
    return open_checkpoint(folder / "image.pth")


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_the_other_projects_model(case, tmp_path):
    state, theirs, size = case()
    found = opened(tmp_path, state)
    published = image_only.read(found)
    ours = model_of(published)
    pixels = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs((pixels / 255 - ours.image.mean) / ours.image.std).flatten(1)
        assert torch.allclose(ours.image.features(pixels), expected, atol=1e-5, rtol=1e-4)
    assert image_only.recognises(found)
    assert (published.text, published.width) == (None, expected.shape[1])


@pytest.mark.parametrize("case", [moco, mae, dinov2, torchvision_vit])
def test_what_only_the_pretraining_needed_is_left_out_and_said(case, tmp_path):
    notes = image_only.read(opened(tmp_path, case()[0])).notes
    assert any("left out" in note for note in notes)


def test_the_small_transformer_of_moco_has_twelve_heads(tmp_path):
    model = timm.create_model("vit_base_patch16_224", **VIT | {"embed_dim": 384, "num_heads": 12})
    found = opened(tmp_path, prefixed(model.state_dict(), "base_encoder."))
    assert image_only.read(found).image.options["num_heads"] == 12


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto"])
def test_timms_folder_gives_the_model_and_its_preprocessing(name, tmp_path):
    theirs = shake(timm.create_model(name, num_classes=7))
    shown = {"input_size": [3, 224, 224], "crop_pct": 0.95, "interpolation": "bilinear", "classifier": "head"}
    classifier = {"resnet18": "fc", "convnext_atto": "head.fc"}.get(name, "head")
    shown |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "classifier": classifier}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": shown}), encoding="utf-8")
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    published = image_only.read(open_checkpoint(tmp_path))
    ours = model_of(published)
    theirs.reset_classifier(0)
    pixels = torch.randint(0, 256, (1, 3, 224, 224), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs((pixels / 255 - ours.image.mean) / ours.image.std)
        assert torch.allclose(ours.image.features(pixels), expected, atol=1e-5, rtol=1e-4)
    assert (published.mean, published.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert published.image.frame == Frame(mode="crop", scale=235, interpolation="bilinear")


def test_an_unknown_family_says_how_to_name_the_model(tmp_path):
    found = opened(tmp_path, {"stage.0.weight": torch.zeros(2, 2)})
    assert not image_only.recognises(found)
    with pytest.raises(UserError, match="--image NAME --image-weights FILE"):
        image_only.read(found)


@pytest.mark.parametrize(
    "case", [dinov2, *(pytest.param(case, marks=pytest.mark.slow) for case in (torchvision_vit, torchvision_convnext))]
)
def test_one_renamed_missing_or_reshaped_entry_is_named(case, tmp_path):
    spared = r"(fc|head|heads|classifier\.2|mask_token)\b.*"
    alike = r"(?<=features\.)\d+\.\d+|(?<=layer)\d\.\d+|(?<=blocks\.)\d+|(?<=layer_)\d+"
    tried, wrong = wrong_by_one(opened(tmp_path, case()[0]), image_only.read, spared=spared, alike=alike)
    assert tried > 11
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # torchvision's documented counts of parameters, less those of their classifiers of 1,000 classes.
        ("resnet50", 25_557_032 - 2_049_000),
        ("resnext50_32x4d", 25_028_904 - 2_049_000),
        ("vit_b_16", 86_567_656 - 769_000),
        ("convnext_tiny", 28_589_128 - 769_000),
        ("swin_t", 28_288_354 - 769_000),
    ],
)
def test_the_published_sizes_have_the_published_counts(name, count):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    found = Checkpoint(place=name, state=model.state_dict())
    published = image_only.read(found)
    shapes = wanted(image=published.image, text=None, width=published.width, scale=False)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(value.numel() for key, value in shapes.items() if not key.endswith(buffers)) == count
    assert published.image.name.startswith(name.split("_")[0])
