"""The checkpoints of OpenAI and open_clip: equal weights give equal numbers in our towers, and come back unchanged."""

from dataclasses import replace
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from timm.models import build_model_with_cfg, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.vision_transformer import vit_base_patch32_clip_quickgelu_224
from torch import Tensor, nn
from torch.nn.functional import normalize

from unicl.errors import UserError
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, TextTower
from unicl.towers.weights.load import load_strict
from unicl.towers.weights.open_clip import image_state, is_image_state, is_text_state, open_clip_state, text_state

WIDTH = 24
SIZE = 64
VOCAB = 50
EOS = VOCAB - 1
TEXT = TextSettings(layers=2, dim=32, heads=4, context=12)
TEXT_CFG = CLIPTextCfg(context_length=12, vocab_size=VOCAB, width=32, heads=4, layers=2)


@register_model
def unicl_small_vit(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """timm's CLIP ViT with fewer and narrower blocks."""
    small = {"patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 1}
    return vit_base_patch32_clip_quickgelu_224(pretrained, **small, **arguments)


@register_model
def unicl_small_resnet(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """timm's CLIP ResNet with fewer and narrower blocks."""
    blocks = tuple(
        ByoBlockCfg(type="bottle", d=depth, c=width, s=stride, br=0.25)
        for depth, width, stride in ((2, 64, 1), (1, 128, 2), (1, 256, 2), (1, 512, 2))
    )
    cfg = ByoModelCfg(
        blocks=blocks,
        stem_chs=(8, 8, 16),
        stem_type="",
        stem_pool="avg2",
        downsample="avg",
        aa_layer="avg",
        head_type="attn_abs",
    )
    features = {"flatten_sequential": True}
    return build_model_with_cfg(ByobNet, "resnet50_clip", pretrained, model_cfg=cfg, feature_cfg=features, **arguments)


@pytest.fixture
def vit() -> nn.Module:
    return _theirs(CLIPVisionCfg(layers=2, width=64, head_width=64, patch_size=16, image_size=SIZE))


@pytest.fixture
def resnet() -> nn.Module:
    return _theirs(CLIPVisionCfg(layers=(2, 1, 1, 1), width=16, image_size=SIZE))


def _theirs(vision: CLIPVisionCfg) -> nn.Module:
    torch.manual_seed(0)
    model = open_clip.model.CLIP(WIDTH, vision, TEXT_CFG, quick_gelu=True).double()
    for parameter in model.parameters():
        # Some start as zeros, which would hide a wrong place.
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


def _image_tower(name: str) -> ImageTower:
    head = "none" if "resnet" in name else "linear"
    return ImageTower(ImageSettings(name=name, size=SIZE, head=head), width=WIDTH).double()


def _text_tower(settings: TextSettings = TEXT) -> TextTower:
    return TextTower(settings, width=WIDTH, vocab_size=VOCAB, eos_id=EOS, pad_id=0).double()


def _pixels() -> Tensor:
    return torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def _tokens(length: int) -> tuple[Tensor, Tensor]:
    tokens = torch.zeros(3, length, dtype=torch.int64)
    for row, real in enumerate((3, 7, 5)):
        tokens[row, : real - 1] = torch.randint(1, EOS, (real - 1,), generator=torch.Generator().manual_seed(row))
        tokens[row, real - 1] = EOS
    return tokens, torch.arange(length) < torch.tensor([[3], [7], [5]])


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients under the names of the weights, so that they can travel the same way as weights."""
    zeros = {name: torch.zeros_like(value) for name, value in module.state_dict().items()}
    return zeros | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("name", ["unicl_small_vit", "unicl_small_resnet"])
@pytest.mark.parametrize("training", [False, True])
def test_images_give_the_numbers_and_gradients_of_open_clip(name: str, training: bool, request: Any) -> None:
    theirs = request.getfixturevalue("vit" if "vit" in name else "resnet").train(training)
    tower = _image_tower(name).train(training)
    load_strict(tower, image_state(theirs.state_dict(), tower), source="open_clip")
    scaled = (_pixels().double() / 255 - tower.mean) / tower.std
    direction = torch.randn(3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    wanted = normalize(theirs.encode_image(scaled), dim=-1)
    found = tower(_pixels()).whole
    (wanted * direction).sum().backward()
    (found * direction).sum().backward()

    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    moved = image_state({k: v for k, v in _gradients(theirs).items() if k.startswith("visual.")}, tower)
    own = _gradients(tower)
    _assert_same({k: own[k] for k, _ in tower.named_parameters()}, {k: moved[k] for k, _ in tower.named_parameters()})


@pytest.mark.parametrize("length", [7, 12])
def test_texts_give_the_numbers_and_gradients_of_open_clip(vit: nn.Module, length: int) -> None:
    tower = _text_tower()
    load_strict(tower, text_state(vit.state_dict(), tower), source="open_clip")
    tokens, mask = _tokens(length)
    full, _ = _tokens(12)
    direction = torch.randn(3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    wanted = normalize(vit.encode_text(full), dim=-1)
    found = tower(tokens, mask).whole
    (wanted * direction).sum().backward()
    (found * direction).sum().backward()

    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    moved, own = text_state(_gradients(vit), tower), _gradients(tower)
    _assert_same(own, moved)


@pytest.mark.parametrize("name", ["unicl_small_vit", "unicl_small_resnet"])
def test_a_checkpoint_goes_in_and_comes_out_unchanged(name: str, request: Any) -> None:
    theirs = request.getfixturevalue("vit" if "vit" in name else "resnet").state_dict()
    image, text = _image_tower(name), _text_tower()
    load_strict(image, image_state(theirs, image), source="open_clip")
    load_strict(text, text_state(theirs, text), source="open_clip")

    back = open_clip_state(image=image, text=text)

    wanted = {key: value for key, value in theirs.items() if key != "logit_scale"}
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[key], wanted[key]) for key in wanted)


def test_an_open_clip_model_with_a_timm_tower_reads_what_we_write() -> None:
    vision = CLIPVisionCfg(timm_model_name="test_vit", image_size=160, timm_pool="token")
    theirs = open_clip.model.CustomTextCLIP(WIDTH, vision, TEXT_CFG, quick_gelu=True).double()
    image = ImageTower(ImageSettings(name="test_vit", size=160), width=WIDTH).double()
    text = _text_tower()

    state = open_clip_state(image=image, text=text)
    theirs.load_state_dict(state | {"logit_scale": theirs.logit_scale})
    back = image_state(theirs.state_dict(), image)

    pixels = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    scaled = (pixels.double() / 255 - image.mean) / image.std
    torch.testing.assert_close(theirs.visual.eval()(scaled), image.head(image.eval().features(pixels)))
    assert all(torch.equal(back[key], value) for key, value in image.state_dict().items())
    assert all(torch.equal(text_state(state, text)[key], value) for key, value in text.state_dict().items())


@pytest.mark.parametrize(
    ("checkpoint", "model", "head", "width", "size"),
    [
        ("ViT-B-32-quickgelu", "vit_base_patch32_clip_quickgelu_224", "linear", 512, 224),
        ("ViT-L-14-336-quickgelu", "vit_large_patch14_clip_quickgelu_336", "linear", 768, 336),
        ("RN50-quickgelu", "resnet50_clip", "none", 1024, 224),
        ("RN50x4-quickgelu", "resnet50x4_clip", "none", 640, 288),
    ],
)
def test_published_models_fit_name_by_name(checkpoint: str, model: str, head: Any, width: int, size: int) -> None:
    cfg = open_clip.get_model_config(checkpoint)
    with torch.device("meta"):
        vision, words = CLIPVisionCfg(**cfg["vision_cfg"]), CLIPTextCfg(**cfg["text_cfg"])
        theirs = open_clip.model.CLIP(cfg["embed_dim"], vision, words, quick_gelu=True).state_dict()
        image = ImageTower(ImageSettings(name=model, size=size, head=head), width=width)
        settings = TextSettings(layers=words.layers, dim=words.width, heads=words.heads)
        text = TextTower(settings, width=width, vocab_size=words.vocab_size, eos_id=49_407, pad_id=0)

    for tower, state in ((image, image_state(theirs, image)), (text, text_state(theirs, text))):
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in tower.state_dict().items()}


def test_clips_text_tower_has_its_published_number_of_parameters() -> None:
    settings = TextSettings(layers=12, dim=512, heads=8, context=77)
    with torch.device("meta"):
        tower = TextTower(settings, width=512, vocab_size=49_408, eos_id=49_407, pad_id=0)
    assert sum(p.numel() for p in tower.backbone.parameters()) == 63_165_952


def test_positions_are_resampled_for_another_image_size(vit: nn.Module) -> None:
    tower = ImageTower(ImageSettings(name="unicl_small_vit", size=96), width=WIDTH).double()
    state = image_state(vit.state_dict(), tower)
    load_strict(tower, state, source="open_clip")
    assert torch.equal(tower.backbone.pos_embed[0, 0], vit.visual.positional_embedding[0])
    assert tower(torch.zeros(1, 3, 96, 96, dtype=torch.uint8)).whole.shape == (1, WIDTH)


def test_a_shorter_context_is_exact(vit: nn.Module) -> None:
    short = _text_tower(replace(TEXT, context=8))
    load_strict(short, text_state(vit.state_dict(), short), source="open_clip")
    wanted = normalize(vit.encode_text(_tokens(12)[0]), dim=-1)
    torch.testing.assert_close(short(*_tokens(8)).whole, wanted, rtol=1e-10, atol=1e-12)


def test_scalars_and_prefixes_of_other_releases_are_no_weights(vit: nn.Module) -> None:
    state = vit.state_dict() | {"input_resolution": torch.tensor(64), "context_length": torch.tensor(12)}
    assert is_image_state(state)
    assert is_text_state(state)
    assert text_state(state, _text_tower()).keys() == _text_tower().state_dict().keys()


def test_a_checkpoint_of_another_depth_names_what_is_left_over(vit: nn.Module) -> None:
    shallow = _text_tower(replace(TEXT, layers=1))
    with pytest.raises(UserError, match=r"12 unexpected \(transformer\.resblocks\.1\.attn"):
        text_state(vit.state_dict(), shallow)


def test_a_tower_without_the_checkpoints_head_is_refused(vit: nn.Module) -> None:
    tower = ImageTower(ImageSettings(name="unicl_small_vit", size=SIZE, head="mlp"), width=WIDTH)
    with pytest.raises(UserError, match="no place for 'head"):
        image_state(vit.state_dict(), tower)
