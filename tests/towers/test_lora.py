import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers
from unicl.published import fill_model, model_of, publish
from unicl.towers.build import build_image_tower
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.lora import adapters, merge_adapters
from unicl.towers.text import TextSettings, TextTower

SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
IMAGES = {
    "a vision transformer": ImageSettings(name="test_vit", size=32),
    "one that pools its places": ImageSettings(name="test_vit", size=32, pool="avg"),
    "swin": ImageSettings(name="swin_tiny_patch4_window7_224", size=56, options=SWIN),
    "a net of convolutions": ImageSettings(name="test_resnet", size=32),
    "convnext": ImageSettings(name="test_convnext", size=32),
    "efficientnet": ImageSettings(name="test_efficientnet", size=32),
    "a pool of our own": ImageSettings(name="test_resnet", size=32, pool="map"),
}
TEXTS = {
    "clip": TextSettings(layers=2, dim=16, heads=2, context=8),
    "clip, mean": TextSettings(layers=2, dim=16, heads=2, context=8, pool="mean"),
    "bert": TextSettings(name="bert", layers=2, dim=16, heads=2, context=8),
    "siglip": TextSettings(name="siglip", layers=2, dim=16, heads=2, context=8),
}
CASES = [*IMAGES, *TEXTS]


def made(case, *, lora=0, **fields):
    torch.manual_seed(0)
    if case in IMAGES:
        tower = ImageTower(replace(IMAGES[case], lora=lora, **fields), width=8)
        for module in tower.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # some start at zero, and nothing behind them counts
        return tower
    settings = replace(TEXTS[case], lora=lora, **fields)
    return TextTower(settings, width=8, vocab_size=40, eos_id=2, pad_id=0)


def features(tower):
    generator = torch.Generator().manual_seed(3)
    if isinstance(tower, ImageTower):
        side = tower.settings.size
        return tower(torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=generator)).whole
    tokens = torch.randint(3, 40, (3, 8), generator=generator)
    tokens[:, 5] = 2
    return tower(tokens, torch.arange(8).expand(3, 8) < torch.tensor([[8], [6], [6]])).whole


def moved(tower):
    """Adapters that do something; at their start they do nothing."""
    for name, parameter in tower.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return tower


@pytest.mark.parametrize("case", CASES)
def test_an_adapted_tower_starts_as_the_tower_that_it_adapts(case):
    plain, adapted = made(case).eval(), made(case, lora=3).eval()
    adapted.load_state_dict({**adapters(adapted), **plain.state_dict()})
    torch.testing.assert_close(features(adapted), features(plain), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_entries_of_the_state_keep_their_names_and_adapters_come_beside_them(case):
    plain, adapted = made(case), made(case, lora=3)
    beside = adapters(adapted)
    assert set(adapted.state_dict()) == set(plain.state_dict()) | set(beside)
    assert not set(plain.state_dict()) & set(beside)
    assert adapters(plain) == {}
    assert len(beside) >= 4


@pytest.mark.parametrize("case", CASES)
def test_only_the_adapters_and_what_stands_on_the_backbone_learn(case):
    tower = moved(made(case, lora=3)).train()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    features(tower).square().mul(torch.arange(8)).sum().backward()
    got = {name for name, p in tower.named_parameters() if p.grad is not None and p.grad.any()}
    named = {name for name, p in tower.named_parameters() if "lora_" in name or not name.startswith("backbone.")}
    assert {name for name, p in tower.named_parameters() if p.requires_grad} == named
    assert {name for name in named if "lora_" in name} <= got
    # Nothing moves by itself either, such as the statistics of batch norm.
    assert all(torch.equal(before[name], value) for name, value in tower.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_merged_adapters_give_the_same_features_from_plain_weights(case):
    plain, tower = made(case), moved(made(case, lora=3)).eval()
    wanted, start = features(tower), features(made(case).eval())
    assert (wanted - start).abs().max() > 1e-3
    merge_adapters(tower)
    torch.testing.assert_close(features(tower), wanted, rtol=0, atol=1e-5)
    assert [(n, type(m)) for n, m in tower.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    plain.eval().load_state_dict(tower.state_dict())
    assert torch.equal(features(plain), features(tower))


@pytest.mark.parametrize("case", CASES)
def test_a_state_with_adapters_loads_equal(case):
    first = moved(made(case, lora=3)).eval()
    second = made(case, lora=3).eval()
    assert not torch.equal(features(first), features(second))
    second.load_state_dict(first.state_dict())
    assert torch.equal(features(first), features(second))


def test_a_state_that_lacks_one_adapter_is_refused():
    tower = made("clip", lora=3)
    state = tower.state_dict()
    gone = next(name for name in state if "lora_B" in name)
    del state[gone]
    with pytest.raises(RuntimeError, match=gone):
        tower.load_state_dict(state)


def test_every_matrix_of_attention_and_mlp_has_an_adapter_of_its_rank():
    tower = made("a vision transformer", lora=3)
    state = tower.state_dict()
    blocks = len(tower.backbone.blocks)
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        for block in range(blocks):
            start = f"backbone.blocks.{block}.{name}"
            outputs, inputs = state[f"{start}.weight"].shape
            assert state[f"{start}.lora_A.default.weight"].shape == (3, inputs)
            assert state[f"{start}.lora_B.default.weight"].shape == (outputs, 3)
    assert len(adapters(tower)) == 2 * 4 * blocks


def test_an_adapted_matrix_is_the_matrix_and_the_product_of_its_adapter():
    tower = moved(made("a vision transformer", lora=3))
    state = {name: value.clone() for name, value in tower.state_dict().items()}
    merge_adapters(tower)
    start = "backbone.blocks.0.mlp.fc1"
    wanted = (
        state[f"{start}.weight"] + state[f"{start}.lora_B.default.weight"] @ state[f"{start}.lora_A.default.weight"]
    )
    torch.testing.assert_close(tower.state_dict()[f"{start}.weight"], wanted)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "swinv2_tiny_window8_256"])
def test_a_matrix_that_is_read_past_its_layer_gets_no_adapter(name):
    """These read the matrix of queries, keys and values, and would go round its adapter."""
    options = {"depth": 1, "embed_dim": 24, "num_heads": 2} if "beit" in name else SWIN
    tower = ImageTower(ImageSettings(name=name, size=64, options=options, lora=2), width=8)
    assert not any(".qkv.lora" in name for name in adapters(tower))
    assert any(".proj.lora" in name for name in adapters(tower))
    features(tower.train()).square().mul(torch.arange(8)).sum().backward()
    wanted = moved(tower).eval()
    before = features(wanted)
    merge_adapters(tower)
    torch.testing.assert_close(features(tower), before, rtol=0, atol=1e-5)


def test_pixels_are_read_without_an_adapter():
    assert not any("patch_embed" in name for name in adapters(made("a vision transformer", lora=3)))
    stem = adapters(made("a net of convolutions", lora=3))
    assert not any(name.startswith("backbone.conv1.0.") for name in stem)
    assert any(name.startswith("backbone.conv1.") for name in stem)


def test_building_draws_the_same_adapters_from_the_same_seed():
    first, second = made("clip", lora=3), made("clip", lora=3)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_tower_that_is_locked_later_locks_its_adapters_too():
    tower = made("clip", lora=3)
    tower.lock(True)
    assert [n for n, p in tower.named_parameters() if p.requires_grad] == ["head.weight"]
    tower.lock(False)
    assert {n for n, p in tower.named_parameters() if p.requires_grad} == {
        "head.weight",
        *(n for n, _ in tower.named_parameters() if "lora_" in n),
    }


@pytest.mark.parametrize("case", ["a vision transformer", "clip"])
def test_a_rank_below_zero_or_on_a_locked_tower_is_an_error(case):
    with pytest.raises(UserError, match="0 or more, not -2"):
        made(case, lora=-2)
    with pytest.raises(UserError, match="lora or locked"):
        made(case, lora=4, locked=True)


def test_without_peft_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'unicl\[adapt\]'"):
        made("clip", lora=4)


def test_a_tower_of_shapes_alone_can_be_adapted():
    with torch.device("meta"):
        tower = made("a vision transformer", lora=4)
    assert tower.feature_width == 64
    assert len(adapters(tower)) == len(adapters(made("a vision transformer", lora=4)))


def test_checkpointing_and_adapters_go_together():
    for case in ("a vision transformer", "clip", "bert"):
        plain, saving = moved(made(case, lora=3)).train(), made(case, lora=3, checkpointing=True).train()
        saving.load_state_dict(plain.state_dict())
        for tower in (plain, saving):
            features(tower).square().mul(torch.arange(8)).sum().backward()
        wanted = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
        for name, parameter in saving.named_parameters():
            if name in wanted:
                torch.testing.assert_close(parameter.grad, wanted[name])


def test_weights_of_a_plain_tower_are_loaded_under_the_adapters(tmp_path):
    plain = made("a vision transformer").eval()
    torch.save(plain.backbone.state_dict(), tmp_path / "timm.pt")
    settings = replace(IMAGES["a vision transformer"], lora=3, weights=str(tmp_path / "timm.pt"))
    tower = build_image_tower(settings, width=8).eval()
    state = tower.state_dict()
    assert all(torch.equal(state[f"backbone.{name}"], value) for name, value in plain.backbone.state_dict().items())
    torch.save(dict(list(plain.backbone.state_dict().items())[:-1]), tmp_path / "timm.pt")
    with pytest.raises(UserError, match="1 missing"):
        build_image_tower(settings, width=8)


def test_a_published_pair_goes_under_the_adapters_and_comes_out_merged():
    tokenizer = train_tokenizer(["a red flower"], vocab_size=300, context=8)
    plain = ModelSettings(image=IMAGES["a vision transformer"], text=TEXTS["clip"], width=8)
    torch.manual_seed(0)
    given = publish(TwoTowers(plain, tokenizer=tokenizer))
    adapted = replace(plain, image=replace(plain.image, lora=2), text=replace(plain.text, lora=2))
    model = moved(TwoTowers(adapted, tokenizer=tokenizer))
    fill_model(model, given)
    for side, tower in (("image", model.image), ("text", model.text)):
        for name, value in tower.state_dict().items():
            if "lora_" not in name and name not in ("mean", "std"):
                assert torch.equal(value, given.state[f"{side}.{name}"]), name
    out = publish(model)
    assert set(out.state) == set(given.state)
    assert (out.image.lora, out.text.lora) == (0, 0)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model_of(out).embed_image(pixels), model.embed_image(pixels), rtol=0, atol=1e-5)
    assert (model_of(given).embed_image(pixels) - model.embed_image(pixels)).abs().max() > 1e-3
