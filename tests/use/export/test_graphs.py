"""Towers as graphs: the same numbers for any number of rows and tokens."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers
from unicl.objective.terms import ContrastSettings
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.use.export.graphs import Graph, image_graph, joint_graph, scoring, text_graph
from unicl.use.export.settings import ExportSettings

FLOAT = ExportSettings()
TEXTS = ["a", "a red flower by the water, and a temple on a hill behind many other words", "two words", "红花"]
IMAGE = ImageSettings(name="test_vit", size=32)
TEXT = TextSettings(layers=2, dim=32, heads=2, context=12)


def built(image=IMAGE, text=TEXT, **more):
    torch.manual_seed(0)
    tokenizer = None
    if text is not None:
        words = ["a red flower by the water", "a temple on a hill"]
        tokenizer = train_tokenizer(words, vocab_size=300, context=text.context, fixed=text.fixed)
    return TwoTowers(ModelSettings(image=image, text=text, width=16, **more), tokenizer=tokenizer).eval()


def pixels(count, side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def run(graph, *inputs):
    return graph.traced().module()(*inputs)


@pytest.mark.parametrize(
    "settings",
    [
        IMAGE,
        replace(IMAGE, pool="avg", head="mlp"),
        replace(IMAGE, name="test_resnet", head="affine", pool="map"),
        replace(IMAGE, name="test_efficientnet", head="gelu_double"),
        pytest.param(replace(IMAGE, name="resnet50_clip", size=64), marks=pytest.mark.slow),
        pytest.param(replace(IMAGE, name="swin_tiny_patch4_window7_224", size=224), marks=pytest.mark.slow),
    ],
    ids=lambda settings: f"{settings.name} {settings.pool} {settings.head}",
)
def test_an_image_tower_as_a_graph_gives_its_own_numbers_for_any_number_of_images(settings):
    model = built(settings, None, terms=(ContrastSettings(),))
    model.image.set_normalisation(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    images = pixels(5, settings.size)
    whole, features = run(image_graph(model, FLOAT), images)
    with torch.no_grad():
        wanted = model.image(images)
    assert torch.allclose(whole, wanted.whole, atol=1e-6)
    assert torch.allclose(features, wanted.features, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        TEXT,
        replace(TEXT, pool="mean", head="affine"),
        replace(TEXT, name="bert", head="pooler", states=(1, -1)),
        pytest.param(replace(TEXT, name="bert", pool="max", head="gelu_half"), marks=pytest.mark.slow),
        replace(TEXT, name="siglip", fixed=True),
        pytest.param(replace(TEXT, name="siglip"), marks=pytest.mark.slow),
    ],
    ids=lambda settings: f"{settings.name} {settings.pool} {settings.head}",
)
def test_a_text_tower_as_a_graph_gives_its_own_numbers_for_texts_of_any_length(settings):
    model = built(text=settings)
    program = text_graph(model, FLOAT).traced().module()
    for texts, padding in ((TEXTS, 0), (TEXTS[:1] * 3, 3), (TEXTS[2:] * 4, 1)):
        tokens, mask = model.tokenizer(texts)
        padding = 0 if settings.fixed else padding
        with torch.no_grad():
            wanted = model.text(tokens, mask).whole
            found = program(F.pad(tokens, (0, padding)), F.pad(mask, (0, padding)))[0]
        assert torch.allclose(found, wanted, atol=1e-6)


def test_texts_that_are_read_over_their_padding_are_no_graph():
    with pytest.raises(UserError, match="read over their padding cannot be exported as a graph"):
        text_graph(built(text=replace(TEXT, name="bert", pool="padded")), FLOAT)


def test_a_transformer_that_does_not_take_wide_masks_gets_narrow_ones():
    class Narrow(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.dtype = inner.dtype

        def forward(self, input_ids, attention_mask):
            if attention_mask.ndim != 2:
                raise ValueError("a mask of two dimensions was wanted")
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    model = built(text=replace(TEXT, name="bert"))
    assert text_graph(model, FLOAT).module.masks == "wide"
    object.__setattr__(model.text, "backbone", Narrow(model.text.backbone))
    model.text._modules["backbone"] = Narrow(model.text._modules["backbone"])
    assert text_graph(model, FLOAT).module.masks == "narrow"


def test_views_are_the_whole_vector_and_its_prefix(model):
    images = pixels(3, 32)
    both = image_graph(model, FLOAT)
    assert both.outputs == ("image_embedding", "image_classes", "image_features")
    whole, classes, _ = both.module(images)
    assert torch.allclose(classes, model.embed_image(images, view="classes"), atol=1e-6)
    assert torch.allclose(whole, model.embed_image(images), atol=1e-6)
    narrow = image_graph(model, ExportSettings(view="classes"))
    assert narrow.outputs == ("image_embedding", "image_features")
    assert torch.equal(narrow.module(images)[0], classes)


def test_raw_outputs_are_those_of_the_head(model):
    images = pixels(3, 32)
    raw, classes, features = image_graph(model, ExportSettings(normalise=False)).module(images)
    assert torch.allclose(raw, model.image.head(features), atol=1e-6)
    assert torch.equal(classes, raw[:, :8])


def test_a_joint_graph_gives_scaled_scores_with_their_bias():
    scale = ScaleSettings(init=10.0, bias=-3.0)
    model = built(terms=(ContrastSettings(scale=scale),))
    assert scoring(model, view="instances") == pytest.approx((10.0, -3.0))
    graph = joint_graph(model, image_graph(model, FLOAT), text_graph(model, FLOAT), view="instances")
    images = pixels(3, 32)
    tokens, mask = model.tokenizer(TEXTS)
    image, text, scores = run(graph, images, tokens, mask)
    assert torch.allclose(scores, 10 * model.similarity(images, TEXTS) - 3, atol=1e-5)
    assert torch.allclose(image @ text.T * 10 - 3, scores, atol=1e-5)


def test_half_precision_leaves_the_model_as_it_is(model):
    graph = image_graph(model, ExportSettings(dtype="fp16"))
    assert {p.dtype for p in graph.module.parameters()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    whole = graph.module(pixels(2, 32))[0]
    assert whole.dtype == torch.float32
    assert torch.allclose(whole.norm(dim=-1), torch.ones(2), atol=1e-5)


def test_a_module_that_cannot_be_traced_is_told():
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    graph = Graph(module=Branching(), inputs={"x": torch.ones(2, 3)}, varying={"x": {0: "rows"}}, outputs=("y",))
    with pytest.raises(UserError, match="cannot be turned into a graph"):
        graph.traced()


def test_a_model_without_texts_has_no_text_graph(classifier):
    with pytest.raises(UserError, match="no text tower to export"):
        text_graph(classifier, FLOAT)


def test_adapters_are_merged_in_the_graph_and_stay_in_the_model():
    model = built(replace(IMAGE, lora=2), replace(TEXT, lora=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    images = pixels(3, 32)
    wanted = model.embed_image(images)
    graph = image_graph(model, FLOAT)
    assert not any("lora" in name for name, _ in graph.module.named_parameters())
    assert any("lora_B" in name for name, _ in model.image.named_parameters())
    assert torch.allclose(graph.module(images)[0], wanted, atol=1e-5)
    text = text_graph(model, FLOAT).module
    assert not any("lora" in name for name, _ in text.named_parameters())
    assert torch.allclose(text(*model.tokenizer(TEXTS))[0], model.embed_text(TEXTS), atol=1e-5)
