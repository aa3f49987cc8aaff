"""Chinese-CLIP's own files: read and written with equal features, by its own classes on both sides."""

from dataclasses import replace

import pytest
import torch
from cn_clip.clip import load_from_name, tokenize
from cn_clip.clip.model import CLIP
from cn_clip.clip.utils import create_model

from checkpoint_cases import wrong_by_one
from chinese_cases import RESNET, TEXTS, VIT, WORDS, official, official_features, official_file, pictures
from original_towers import shake
from transformers_cases import largest, ours
from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.published import load, model_of, publish
from unicl.towers.image import ImageTower
from unicl.towers.text import TextTower
from unicl.towers.weights import cn_clip as layout
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.published import Published

BASE = {"text_hidden_size": 768, "text_num_attention_heads": 12, "text_intermediate_size": 3072}
LARGE = {"text_hidden_size": 1024, "text_num_attention_heads": 16, "text_intermediate_size": 4096}
SIZES = {
    "RN50": (76_989_537, RESNET | BASE, (1024, 224, None, 3)),
    "ViT-B-16": (188_262_913, VIT | BASE | {"vision_width": 768, "vision_layers": 12}, (512, 224, 16, 12)),
    "ViT-L-14": (406_233_089, VIT | BASE | {"vision_width": 1024, "vision_layers": 24}, (768, 224, 14, 12)),
    "ViT-L-14-336": (406_560_769, VIT | BASE | {"vision_width": 1024, "vision_layers": 24}, (768, 336, 14, 12)),
    "ViT-H-14": (
        957_598_209,
        VIT | LARGE | {"vision_width": 1280, "vision_layers": 32, "vision_head_width": 80},
        (1024, 224, 14, 24),
    ),
    "ViT-B-32": (None, VIT | BASE | {"vision_width": 768, "vision_layers": 12}, (512, 224, 32, 12)),
}


def found_in(model, **more):
    return Checkpoint(place="file.pt", state=dict(model.state_dict()), **more)


def of_size(name):
    """cn_clip's own model of a published size, without memory."""
    _, sizes, (width, side, patch, layers) = SIZES[name]
    sizes = sizes | {"embed_dim": width, "image_resolution": side, "text_num_hidden_layers": layers}
    with torch.device("meta"):
        return CLIP(**(WORDS | sizes | {"vision_patch_size": patch}))


def towers(model: Published):
    """Both, without memory."""
    ids = {"vocab_size": model.vocab_size, "eos_id": model.eos_id, "pad_id": model.pad_id}
    with torch.device("meta"):
        return ImageTower(model.image, width=model.width), TextTower(model.text, width=model.width, **ids)


def number(module):
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize("sizes", [VIT, pytest.param(RESNET, marks=pytest.mark.slow)], ids=["vit", "resnet"])
def test_features_are_equal_on_the_way_in_and_out(tmp_path, sizes):
    original = official(sizes)
    expected = official_features(original, pictures())
    published = layout.read(open_checkpoint(official_file(original, tmp_path / "any.pt")))
    model = model_of(published)
    assert max(largest(ours(model, pictures(), TEXTS), expected)) < 1e-5
    assert published.scale == pytest.approx(float(original.logit_scale.detach().exp()))
    # A picture without its text is another vector: the numbers above are no accident of small models.
    assert min(float((side[0] - side[1]).abs().max()) for side in expected) > 5e-3

    (tmp_path / "out").mkdir()
    out = publish(model)
    assert layout.refusal(out) is None
    (file,) = layout.write(out, tmp_path / "out")
    content = torch.load(file, weights_only=True)
    assert content.keys() == {"epoch", "step", "name", "state_dict"}
    back = official(sizes)
    shake(back, seed=1)
    back.load_state_dict({key.removeprefix("module."): value for key, value in content["state_dict"].items()})
    assert max(largest(official_features(back, pictures()), expected)) < 1e-5
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in original.state_dict().items())


def test_pictures_of_any_shape_are_squashed_as_by_its_own_preprocessing(tmp_path):
    original = official()
    wide = [picture.resize((150, 90)) for picture in pictures()]
    model = load(official_file(original, tmp_path / "any.pt"))
    images, _ = official_features(original, wide)
    assert float((model.embed_image(wide) - images).abs().max()) < 1e-3
    cropped = model_of(replace(publish(model), image=replace(publish(model).image, frame=Frame(mode="crop"))))
    assert float((cropped.embed_image(wide) - images).abs().max()) > 1e-2


def test_a_text_is_the_same_with_and_without_padding(tmp_path):
    model = load(official_file(official(), tmp_path / "any.pt"))
    ids = tokenize(["皮卡丘"])
    full, real = (ids, ids != 0), int((ids != 0).sum())
    trimmed = model.text(ids[:, :real], full[1][:, :real]).whole
    assert torch.allclose(model.text(*full).whole, trimmed, atol=1e-6)
    assert not torch.allclose(model.text(ids, torch.ones_like(ids, dtype=torch.bool)).whole, trimmed, atol=1e-3)


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_are_told_by_shapes_with_their_exact_counts(name):
    theirs = of_size(name)
    wanted, _, (width, side, patch, layers) = SIZES[name]
    model = layout.read(found_in(theirs))
    image, text = towers(model)
    assert number(image) + number(text) + 1 == number(theirs)
    assert wanted in (None, number(theirs))
    assert number(image) == number(theirs.visual)
    assert model.origin.endswith(name)
    assert (model.width, model.image.size, model.text.layers, model.text.context) == (width, side, layers, 52)
    if patch:
        heads = theirs.visual.transformer.resblocks[0].attn.num_heads
        assert image.backbone.blocks[0].attn.num_heads == heads
        assert image.backbone.patch_embed.patch_size == (patch, patch)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_may_say_module_or_not_and_may_have_a_pooler(tmp_path, prefix):
    original = official()
    original.bert.pooler = torch.nn.ModuleDict({"dense": torch.nn.Linear(128, 128)})
    found = layout.read(open_checkpoint(official_file(original, tmp_path / "any.pt", prefix=prefix)))
    assert [note for note in found.notes if "pooler" in note]
    assert layout.CLAMPED in found.notes


@pytest.mark.parametrize(
    ("sizes", "spared", "least"),
    [
        (VIT, ".*bias", 20),
        (RESNET, r".*bias|bert\..*|visual\.(layer[234]|conv[23]|bn).*|.*(running|num_batches).*", 10),
    ],
    ids=["vit", "resnet"],
)
def test_one_wrong_entry_is_an_error_that_names_it(sizes, spared, least):
    with torch.device("meta"):
        original = CLIP(**(WORDS | sizes))
    tried, wrong = wrong_by_one(found_in(original), layout.read, spared=spared)
    assert tried > least
    assert wrong == []


def test_another_vocabulary_or_resnet_is_refused():
    original = official(vocab_size=500)
    with pytest.raises(UserError, match=r"word_embeddings\.weight has 500 entries, in Chinese-CLIP 21128"):
        layout.read(found_in(original))
    state = official(RESNET).state_dict()
    fewer = {key: value for key, value in state.items() if not key.startswith("visual.layer3.5.")}
    with pytest.raises(UserError, match=r"\(3, 4, 5, 3\) blocks"):
        layout.read(Checkpoint(place="file.pt", state=fewer))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: replace(model, image=replace(model.image, frame=Frame())), "squashes"),
        (lambda model: replace(model, mean=(0.5, 0.5, 0.5)), "squashes"),
        (lambda model: replace(model, text=replace(model.text, head="affine")), "text tower"),
        (lambda model: replace(model, text=replace(model.text, fixed=True)), "text tower"),
        (lambda model: replace(model, text=replace(model.text, heads=4)), "text tower"),
        (lambda model: replace(model, vocab_size=500), "21128 entries"),
        (lambda model: replace(model, image=replace(model.image, pool="avg")), "image towers"),
        (lambda model: replace(model, image=replace(model.image, name="resnet18", options={})), "image towers"),
        (lambda model: replace(model, state=model.state | {"bias": torch.zeros(())}), "bias"),
        (lambda model: replace(model, text=None), "not all three"),
    ],
)
def test_what_its_classes_cannot_hold_is_said_before_anything_is_written(change, said):
    model = layout.read(found_in(official()))
    assert layout.refusal(model) is None
    assert said in layout.refusal(change(model))


@pytest.mark.slow
def test_a_published_size_loads_by_name_with_its_own_loader(tmp_path):
    _, sizes, (width, side, _, layers) = SIZES["RN50"]
    original = official(sizes | {"embed_dim": width, "image_resolution": side, "text_num_hidden_layers": layers})
    model = model_of(layout.read(found_in(original)))
    (file,) = layout.write(publish(model), tmp_path)
    assert file.name == "clip_cn_rn50.pt"
    theirs, _ = load_from_name("RN50", device="cpu", download_root=str(tmp_path))
    expected = official_features(theirs.eval(), pictures(side=224))
    # It rounds weights to half precision.
    assert max(largest(ours(model, pictures(side=224), TEXTS), expected)) < 1e-2
    made = create_model("RN50@RBT3-chinese", torch.load(file, weights_only=True))
    assert torch.equal(made.state_dict()["text_projection"], original.text_projection.half())
