"""transformers' VisionTextDualEncoderModel: read, and the way out for any image tower beside CLIP's or BERT's texts."""

from dataclasses import replace

import pytest
import torch
from transformers import VisionTextDualEncoderModel

from checkpoint_cases import wrong_by_one
from original_towers import shake
from transformers_cases import (
    CONTEXT,
    TEXTS,
    bert_tokenizer,
    clip_tokenizer,
    largest,
    loaded,
    ours,
    pictures,
    save_clip,
    save_dual,
    theirs,
)
from unicl.data.image import Frame
from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers
from unicl.objective.terms import ContrastSettings
from unicl.published import model_of, publish
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.towers.weights import transformers_dual as layout
from unicl.towers.weights.checkpoint import open_checkpoint

CLIP_IMAGE = {"model_type": "clip_vision_model", "hidden_act": "gelu"}
VIT = {"model_type": "vit", "layer_norm_eps": 1e-12}
TIMM = {"model_type": "timm_wrapper", "architecture": "test_efficientnet", "hidden_size": 256, "num_classes": 0}
BERT = {"model_type": "bert", "hidden_act": "gelu"}
ROBERTA = {"model_type": "roberta", "pad_token_id": 0, "max_position_embeddings": CONTEXT + 1}


def made(folder, *, vision, text):
    """One of theirs in ``folder``."""
    words = clip_tokenizer() if text == "clip" else bert_tokenizer()
    clip = {"model_type": "clip_text_model", "eos_token_id": words.eos_token_id}
    return save_dual(folder, vision=vision, text=clip if text == "clip" else text, words=words)


@pytest.mark.parametrize("vision", [CLIP_IMAGE, VIT, TIMM], ids=["clip", "vit", "timm"])
@pytest.mark.parametrize("text", ["clip", BERT, ROBERTA], ids=["clip", "bert", "roberta"])
def test_features_are_equal_on_the_way_in_and_out(tmp_path, vision, text):
    original = made(tmp_path / "a", vision=vision, text=text)
    _, processor = loaded(tmp_path / "a")
    found = open_checkpoint(tmp_path / "a")
    assert layout.recognises(found)
    model = model_of(layout.read(found))
    expected = theirs(original, processor, pictures())
    assert max(largest(ours(model, pictures()), expected)) < 1e-5
    assert float((expected[1][0] - expected[1][1]).abs().max()) > 1e-2

    (tmp_path / "b").mkdir()
    out = publish(model)
    assert layout.refusal(out) is None
    layout.write(out, tmp_path / "b")
    back, words = loaded(tmp_path / "b")
    assert isinstance(back, VisionTextDualEncoderModel)
    assert max(largest(theirs(back, words, pictures()), expected)) < 1e-5
    assert torch.equal(back.logit_scale, original.logit_scale)
    assert type(back.vision_model) is type(original.vision_model)
    assert type(back.text_model) is type(original.text_model)


@pytest.mark.parametrize("vision", [VIT, TIMM], ids=["vit", "timm"])
def test_every_entry_is_accounted_for(tmp_path, vision):
    sizes = {"num_hidden_layers": 1}
    made(tmp_path, vision=vision | sizes, text=BERT | sizes)
    # BERT's names have a test beside the old layout of BertCLIP.
    spared = r"(text_model|vision_model\.timm_model\.blocks)\..*"
    tried, wrong = wrong_by_one(open_checkpoint(tmp_path), layout.read, spared=spared)
    assert tried > 5
    assert wrong == []


OURS = {
    "efficientnet": ImageSettings(name="efficientnet_lite0", size=64, frame=Frame(mode="squash")),
    "vit": ImageSettings(name="test_vit", size=32, pool="avg"),
    "no head": ImageSettings(name="test_vit2", size=32, head="none"),
    "siglip": ImageSettings(name="test_vit", size=32, options={"class_token": False, "global_pool": "map"}),
    "swin": ImageSettings(name="swin_tiny_patch4_window7_224", size=56, options={"depths": (1, 1, 1, 1)}),
    "resized": ImageSettings(name="test_resnet", size=48, frame=Frame(scale=60), dropout=0.5),
}


@pytest.mark.parametrize(
    ("case", "view"),
    [
        *((case, "instances") for case in OURS if case != "swin"),
        pytest.param("swin", "instances", marks=pytest.mark.slow),
        pytest.param("efficientnet", "classes", marks=pytest.mark.slow),
    ],
)
def test_a_nested_model_with_its_own_tokenizer_goes_out_in_both_views(tmp_path, case, view):
    image = OURS[case]
    words = train_tokenizer(TEXTS[:3], vocab_size=300, context=CONTEXT)
    assert words.eos_id == 2
    terms = (
        ContrastSettings(texts="captions", scale=ScaleSettings(init=20.0)),
        ContrastSettings(name="classes", texts="classes", dims=8, scale=ScaleSettings(init=5.0)),
    )
    text = TextSettings(layers=2, dim=24, heads=2, context=CONTEXT)
    width = 64 if image.head == "none" else 16
    model = TwoTowers(ModelSettings(image=image, text=text, width=width, terms=terms), tokenizer=words)
    shake(model.image.backbone)
    shake(model.text)
    model.image.set_normalisation(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    model.eval()
    out = publish(model, view=view)
    assert layout.refusal(out) is None
    layout.write(out, tmp_path)
    back, processor = loaded(tmp_path)
    shown = pictures(sizes=((image.frame.side(image.size),) * 2,) * 2)
    expected = theirs(back, processor, shown)
    mine = model.embed_image(shown, view=view), model.embed_text(list(TEXTS), view=view)
    assert max(largest(mine, expected)) < 1e-5
    assert float(back.logit_scale.detach().exp()) == pytest.approx(20 if view == "instances" else 5)
    again = model_of(layout.read(open_checkpoint(tmp_path)))
    assert max(largest(ours(again, shown), expected)) < 1e-5


def test_a_text_that_says_the_end_mark_does_not_end_there(tmp_path):
    words = train_tokenizer(TEXTS[:3], vocab_size=300, context=CONTEXT)
    text = TextSettings(layers=1, dim=16, heads=2, context=CONTEXT)
    settings = ModelSettings(image=ImageSettings(name="test_vit", size=32), text=text, width=8)
    model = TwoTowers(settings, tokenizer=words).eval()
    layout.write(publish(model), tmp_path)
    texts = ["a <eos> cat", "a cat <eos>", "<pad>"]
    assert largest(ours(model, pictures(), texts), theirs(*loaded(tmp_path), pictures(), texts))[1] < 1e-5


def test_clip_is_also_written_as_a_dual_model(tmp_path):
    save_clip(tmp_path / "a")
    from unicl.towers.weights import transformers_clip

    found = transformers_clip.read(open_checkpoint(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    assert layout.refusal(found) is None
    layout.write(found, tmp_path / "b")
    back, processor = loaded(tmp_path / "b")
    assert max(largest(ours(model_of(found), pictures()), theirs(back, processor, pictures()))) < 1e-5
    assert not transformers_clip.recognises(open_checkpoint(tmp_path / "b"))


@pytest.mark.parametrize(
    ("vision", "text", "said"),
    [
        ({"model_type": "deit"}, BERT, "'deit'"),
        (VIT | {"pooler_act": "relu"}, BERT, "'relu'"),
        (CLIP_IMAGE | {"hidden_act": "silu"}, BERT, "'silu'"),
        (CLIP_IMAGE, {"model_type": "mpnet"}, "'mpnet'"),
    ],
)
def test_towers_that_are_not_known_are_named(tmp_path, vision, text, said):
    made(tmp_path, vision=vision, text=text)
    with pytest.raises(UserError, match=said):
        layout.read(open_checkpoint(tmp_path))


def test_a_model_of_timm_that_cannot_be_built_is_named(tmp_path):
    made(tmp_path, vision=TIMM, text=BERT)
    found = open_checkpoint(tmp_path)
    for change in ({"architecture": "no_such_net"}, {"model_args": {"no_such_part": 3}}):
        vision = {**found.config["vision_config"], **change}
        with pytest.raises(UserError, match="no_such"):
            layout.read(replace(found, config={**found.config, "vision_config": vision}))


@pytest.mark.parametrize(
    ("image", "text", "said"),
    [
        ({"head": "mlp"}, {}, "'mlp'"),
        ({"eps": 1e-3}, {}, "eps 0.001"),
        ({"pool": "map", "name": "test_resnet"}, {}, "'map'"),
        ({"frame": Frame(mode="pad")}, {}, "padded"),
        ({}, {"head": "affine"}, "'affine'"),
        ({}, {"pool": "max"}, "'max'"),
        ({}, {"name": "bert"}, "'linear'"),
        ({}, {"name": "bert", "head": "pooler", "pool": "mean"}, "'mean'"),
        ({}, {"name": "bert", "head": "pooler", "fixed": True}, "padding"),
        ({}, {"name": "siglip"}, "siglip_text_model"),
    ],
)
def test_what_the_layout_cannot_express_is_said_before(image, text, said):
    words = train_tokenizer(TEXTS[:3], vocab_size=300, context=CONTEXT)
    towers = {
        "image": replace(ImageSettings(name="test_vit", size=32), **image),
        "text": replace(TextSettings(layers=1, dim=16, heads=2, context=CONTEXT), **text),
    }
    model = TwoTowers(ModelSettings(**towers, width=8), tokenizer=words)
    assert said in layout.refusal(publish(model))


def test_a_bias_of_scores_is_refused():
    words = train_tokenizer(TEXTS[:3], vocab_size=300, context=CONTEXT)
    terms = (ContrastSettings(loss="sigmoid", scale=ScaleSettings(init=10.0, bias=-10.0)),)
    text = TextSettings(layers=1, dim=16, heads=2, context=CONTEXT)
    image = ImageSettings(name="test_vit", size=32)
    model = TwoTowers(ModelSettings(image=image, text=text, width=8, terms=terms), tokenizer=words)
    assert "bias" in layout.refusal(publish(model))
