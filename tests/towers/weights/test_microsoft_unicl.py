import pytest
import torch

from checkpoint_cases import wrong_by_one
from original_towers import Unicl, shake
from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.published import model_of
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.towers.weights import microsoft_unicl
from unicl.towers.weights.checkpoint import open_checkpoint
from unicl.towers.weights.published import IMAGENET_MEAN, IMAGENET_STD, wanted

LAYOUTS = {
    "A": ("visual", "text", "vision_projection"),
    "B": ("image_encoder", "lang_encoder", "image_projection"),
    "C": ("image_encoder", "text_encoder", "image_projection"),
}
TEXTS = ["a red fruit", "x", "", "a text that is far longer than its context " * 9]
BUFFERS = r".*(relative_position_index|attn_mask|\.head\.\w+)"


def theirs(layout, classes=0):
    image, text, projection = LAYOUTS[layout]
    return shake(Unicl(image=image, text=text, projection=projection, width=24, classes=classes))


def opened(folder, model):
    torch.save({"model": model.state_dict()}, folder / "unicl.pth")
    return open_checkpoint(folder / "unicl.pth")


def pixels():
    return torch.randint(0, 256, (3, 3, 56, 56), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_all_three_layouts_give_the_features_of_the_original(layout, tmp_path):
    model = theirs(layout)
    found = opened(tmp_path, model)
    ours = model_of(microsoft_unicl.read(found))
    assert microsoft_unicl.recognises(found)
    tokens, mask = ours.tokenizer(TEXTS)
    padded = torch.full((len(TEXTS), 24), 49_407)
    padded[:, : tokens.shape[1]] = torch.where(mask, tokens, 49_407)
    normalised = (pixels() / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(ours.image(pixels()).whole, model.encode_image(normalised), atol=1e-5)
        assert torch.allclose(ours.embed_text(TEXTS), model.encode_text(padded), atol=1e-5)


def test_buffers_and_a_classifier_are_left_out_by_name_and_the_scale_is_the_files(tmp_path):
    model = theirs("A", classes=5)
    published = microsoft_unicl.read(opened(tmp_path, model))
    assert any("classifier" in note for note in published.notes)
    assert any("relative_position_index" in note for note in published.notes)
    assert published.scale == pytest.approx(model.logit_scale.exp().item())


def test_what_travels_with_the_weights_is_unicls(tmp_path):
    published = microsoft_unicl.read(opened(tmp_path, theirs("C")))
    assert (published.mean, published.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert published.image.frame == Frame(mode="crop", scale=64, interpolation="bicubic")
    assert published.image.size == 56
    assert (published.text.tokenizer, published.text.eps, published.text.context) == ("clip", 1e-12, 24)


def test_another_vocabulary_than_clips_is_refused(tmp_path):
    found = opened(tmp_path, theirs("A"))
    short = {**found.state, "text.token_embedding.weight": found.state["text.token_embedding.weight"][:100]}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(UserError, match="has 100 rows"):
        microsoft_unicl.read(open_checkpoint(tmp_path / "short.pth"))


@pytest.mark.parametrize("layout", ["A", pytest.param("C", marks=pytest.mark.slow)])
def test_one_renamed_missing_or_reshaped_entry_is_named(layout, tmp_path):
    tried, wrong = wrong_by_one(opened(tmp_path, theirs(layout)), microsoft_unicl.read, spared=BUFFERS)
    assert tried > 27
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("name", "backbone", "whole"),
    [
        ("swin_tiny_patch4_window7_224", 27_519_354, 91_340_667),
        ("swin_base_patch4_window7_224", 86_743_224, 150_695_609),
    ],
)
def test_the_published_sizes_have_the_published_counts(name, backbone, whole):
    # 28,288,354 and 87,768,224 with the classifiers of 1,000 classes (Swin, table 1: 28M and 88M), less those.
    text = TextSettings(name="clip", layers=12, dim=512, heads=8, eps=microsoft_unicl.EPS)
    shapes = wanted(image=ImageSettings(name=name), text=text, width=512, vocab_size=49_408, eos_id=49_407)
    assert sum(value.numel() for key, value in shapes.items() if key.startswith("image.backbone.")) == backbone
    assert sum(value.numel() for value in shapes.values()) == whole
