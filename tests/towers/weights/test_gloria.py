import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from checkpoint_cases import wrong_by_one
from original_towers import shake
from unicl.errors import UserError
from unicl.published import model_of
from unicl.towers.weights import gloria
from unicl.towers.weights.checkpoint import open_checkpoint


class ImageEncoder(nn.Module):
    """The names of GLoRIA's image side around torchvision's own model."""

    def __init__(self):
        super().__init__()
        self.model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
        self.model.fc = nn.Identity()
        self.global_embedder = nn.Linear(512, 64)
        self.local_embedder = nn.Conv2d(256, 64, 1, bias=False)

    def forward(self, pixels):
        enlarged = F.interpolate(pixels, size=(299, 299), mode="bilinear", align_corners=True)
        return self.global_embedder(self.model(enlarged))


class TextEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
        self.model = BertModel(BertConfig(vocab_size=21_128, max_position_embeddings=120, **sizes))


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.img_encoder, self.text_encoder = ImageEncoder(), TextEncoder()


@pytest.fixture(scope="module")
def original():
    return shake(Original())


def opened(folder, original, prefix="gloria."):
    state = {prefix + key: value for key, value in original.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "gloria.ckpt")
    return open_checkpoint(folder / "gloria.ckpt")


@pytest.mark.parametrize("prefix", ["gloria.", ""])
def test_image_embeddings_are_those_of_the_original_models(original, prefix, tmp_path):
    found = opened(tmp_path, original, prefix)
    ours = model_of(gloria.read(found))
    pixels = torch.randint(0, 256, (2, 3, 299, 299), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        expected = F.normalize(original.img_encoder(pixels / 127.5 - 1), dim=-1)
        assert torch.allclose(ours.image(pixels).whole, expected, atol=1e-5)
    assert gloria.recognises(found)


def test_texts_are_the_last_layers_mean_as_the_notes_say(original, tmp_path):
    published = gloria.read(opened(tmp_path, original))
    ours = model_of(published)
    tokens, mask = ours.tokenizer(["心脏增大", "没有发现异常" * 40])
    with torch.no_grad():
        states = original.text_encoder.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        assert torch.allclose(ours.text(tokens, mask).whole, F.normalize(mean, dim=-1), atol=1e-5)
    assert tokens.shape[1] == gloria.CONTEXT
    assert any("sums word pieces" in note for note in published.notes)


def test_the_head_for_regions_is_left_out_and_said(original, tmp_path):
    published = gloria.read(opened(tmp_path, original))
    assert any("local_embedder" in note and "recipe" in note for note in published.notes)
    assert published.scale is None


def test_another_image_tower_than_a_resnet_is_refused(original, tmp_path):
    state = {key: value for key, value in original.state_dict().items() if ".layer" not in key}
    torch.save(state, tmp_path / "dense.ckpt")
    with pytest.raises(UserError, match="no ResNet"):
        gloria.read(open_checkpoint(tmp_path / "dense.ckpt"))


def test_one_renamed_missing_or_reshaped_entry_is_named(original, tmp_path):
    spared = r".*(local_embedder\.weight|pooler\.dense\.\w+)"
    tried, wrong = wrong_by_one(opened(tmp_path, original), gloria.read, spared=spared)
    assert tried > 27
    assert not wrong, wrong
