"""The shortened last block gives the numbers and gradients of the whole one."""

import pytest
import timm
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from unicl.towers.last import FirstTokenBlock, clip_text_at, read_first_token


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _assert_same_gradients(short: nn.Module, whole: nn.Module) -> None:
    found, wanted = _gradients(short), _gradients(whole)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224"])
def test_a_shortened_vision_transformer_equals_the_whole(name: str) -> None:
    arguments = {
        "img_size": 32,
        "num_classes": 0,
        "global_pool": "token",
        "depth": 2,
        "qk_norm": True,
        "init_values": 0.5,
    }
    whole = timm.create_model(name, **arguments).double()
    short = timm.create_model(name, **arguments).double()
    short.load_state_dict(whole.state_dict())
    read_first_token(short)
    assert isinstance(short.blocks[-1], FirstTokenBlock)
    assert short.state_dict().keys() == whole.state_dict().keys()

    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    found, wanted = short(x), whole(x)
    found.square().sum().backward()
    wanted.square().sum().backward()

    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    _assert_same_gradients(short, whole)


@pytest.mark.parametrize(
    ("name", "pool"), [("test_vit", "avg"), ("test_vit", "map"), ("resnet18", "avg"), ("test_vit3", "")]
)
def test_models_that_read_more_than_the_class_token_are_left_alone(name: str, pool: str) -> None:
    model = timm.create_model(name, num_classes=0, global_pool=pool)
    read_first_token(model)
    assert not any(isinstance(part, FirstTokenBlock) for part in model.modules())


def test_clips_text_model_at_one_place_equals_the_whole() -> None:
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=9,
    )
    whole, short = CLIPTextModel(config).double(), CLIPTextModel(config).double()
    short.load_state_dict(whole.state_dict())
    tokens = torch.randint(0, 40, (4, 9))
    places = torch.tensor([0, 3, 8, 5])

    wanted = whole(input_ids=tokens).last_hidden_state[torch.arange(4), places]
    found = clip_text_at(short, tokens, places=places)
    found.square().sum().backward()
    wanted.square().sum().backward()

    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    _assert_same_gradients(short, whole)
