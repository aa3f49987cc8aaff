import pytest
import torch
import torchvision
from torch import nn

from checkpoint_cases import wrong_by_one
from original_towers import shake
from unicl.errors import UserError
from unicl.published import model_of
from unicl.towers.weights import virtex
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.published import wanted
from virtex_cases import Textual, both


class Original(nn.Module):
    """VirTex's names around torchvision's own model; the part that writes captions is only names here."""

    def __init__(self):
        super().__init__()
        cnn = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
        cnn.fc = nn.Identity()
        self.visual = nn.ModuleDict({"cnn": cnn})
        self.textual = nn.ModuleDict({"output": nn.Linear(8, 40), "visual_projection": nn.Linear(2048, 8)})
        self.backward_textual = nn.ModuleDict({"output": self.textual["output"]})


def opened(folder):
    original = shake(Original())
    torch.save({"model": original.state_dict(), "iteration": 5}, folder / "checkpoint_5.pth")
    return original, open_checkpoint(folder / "checkpoint_5.pth")


def test_image_features_are_torchvisions(tmp_path):
    original, found = opened(tmp_path)
    published = virtex.read(found)
    ours = model_of(published)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        expected = original.visual["cnn"]((pixels / 255 - ours.image.mean) / ours.image.std)
        assert torch.allclose(ours.image.features(pixels), expected, atol=1e-5, rtol=1e-4)
    assert virtex.recognises(found)
    assert (published.text, published.width, published.scale) == (None, 2048, None)


def test_what_writes_captions_is_left_out_and_said(tmp_path):
    notes = virtex.read(opened(tmp_path)[1]).notes
    assert any("left out 6" in note and "captions" in note for note in notes)


def test_one_renamed_missing_or_reshaped_entry_is_named(tmp_path):
    tried, wrong = wrong_by_one(opened(tmp_path)[1], virtex.read, spared=r"(backward_)?textual\..*")
    assert tried > 13
    assert not wrong, wrong


def test_the_published_size_has_the_published_count():
    published = virtex.read(open_meta())
    shapes = wanted(image=published.image, text=None, width=2048, scale=False)
    # 25,557,032 with the classifier of 1,000 classes (torchvision's documentation), less that.
    assert sum(value.numel() for key, value in shapes.items() if not counts(key)) == 23_508_032


def open_meta():
    with torch.device("meta"):
        cnn = torchvision.models.resnet50()
    cnn.fc = nn.Identity()
    return Checkpoint(place="resnet50", state={f"visual.cnn.{key}": value for key, value in cnn.state_dict().items()})


def counts(key):
    """Buffers of batch norms are no parameters."""
    return key.endswith(("running_mean", "running_var", "num_batches_tracked"))


def writer(*, backward):
    """The entries of what writes captions, and of an image tower beside it."""
    textual = shake(Textual(size=30, features=2048, width=128, layers=2, heads=2, context=7))
    parts = {"textual": textual} | ({"backward_textual": both(textual)} if backward else {})
    state = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    return Checkpoint(place="model.pth", state={"visual.cnn.conv1.weight": torch.zeros(1), **state})


@pytest.mark.parametrize("backward", [False, True])
def test_the_decoder_of_a_checkpoint_is_as_large_as_its_entries_say(backward):
    found = writer(backward=backward)
    decoder = virtex.decoder_of(found)
    assert (decoder.size, decoder.width, decoder.context) == (30, 128, 7)
    assert len(decoder.transformer.layer) == 2
    assert decoder.transformer.layer[0].attention.self.num_attention_heads == 2
    assert (decoder.backward_transformer is None) == (not backward)
    assert torch.equal(decoder.embedding.words.weight, found.state["textual.embedding.words.weight"])
    own = {key: v for key, v in found.state.items() if key.startswith("textual.") or "transformer" in key}
    tied = found.state["textual.output.weight"].numel()
    assert sum(p.numel() for p in decoder.parameters()) == sum(v.numel() for v in own.values()) - tied


def test_a_wrong_entry_of_the_decoder_is_named_and_a_model_without_one_too():
    tried, wrong = wrong_by_one(writer(backward=True), virtex.decoder_of, spared=r"visual.*|backward_textual\.(?!tr).*")
    assert tried > 30
    assert not wrong, wrong
    with pytest.raises(UserError, match="has no decoder"):
        virtex.decoder_of(open_meta())
