import pytest
import torch
from torch import nn

from unicl.data.check.memory import TOWERS, memory

timm = pytest.importorskip("timm")


def kept(model: nn.Module, batch: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of one forward pass in bf16."""
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model(batch)
    return sum(sizes.values())


def test_the_estimate_is_near_what_autograd_keeps_of_a_vit() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    counted = kept(model, torch.zeros(2, 3, 224, 224)) - kept(model, torch.zeros(1, 3, 224, 224))
    towers = TOWERS[0]
    estimate = memory(towers, batch_size=1, text_tokens=0, context=77).activations
    assert estimate == pytest.approx(counted, rel=0.05)


def test_the_estimate_is_near_what_autograd_keeps_of_a_text_tower() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    shape = TOWERS[0].text
    config = CLIPTextConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = CLIPTextModel(config)
    counted = kept(model, torch.ones(4, 32, dtype=torch.int64)) - kept(model, torch.ones(2, 32, dtype=torch.int64))
    with_text, without = (memory(TOWERS[0], batch_size=2, text_tokens=n, context=77).activations for n in (32, 0))
    assert with_text - without == pytest.approx(counted, rel=0.1)


def test_clip_has_as_many_parameters_as_its_paper_says() -> None:
    found = {t.name[:8]: memory(t, batch_size=1, text_tokens=77, context=77).parameters / 1e6 for t in TOWERS}
    assert found["ViT-B/32"] == pytest.approx(151.3, rel=0.01)
    assert found["ViT-B/16"] == pytest.approx(149.6, rel=0.01)
    assert found["ViT-L/14"] == pytest.approx(427.6, rel=0.01)


def test_scores_grow_with_the_square_of_the_batch_and_activations_with_the_batch() -> None:
    small, large = (memory(TOWERS[1], batch_size=b, text_tokens=16, context=77) for b in (64, 256))
    assert large.scores == 16 * small.scores
    assert large.activations == 4 * small.activations
    assert large.total == large.states + large.activations + large.scores
