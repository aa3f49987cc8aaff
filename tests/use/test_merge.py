import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers, load_model
from unicl.objective.terms import ContrastSettings
from unicl.similarity.scale import ScaleSettings
from unicl.towers.image import ImageSettings
from unicl.towers.text import TextSettings
from unicl.use.merge import interpolate, merge

TEXTS = ["a red flower", "a temple by the water", "红花"]
SETTINGS = ModelSettings(
    image=ImageSettings(name="test_efficientnet", size=32),
    text=TextSettings(layers=1, dim=32, heads=2, context=16),
    width=16,
)
PIXELS = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(seed=0, settings=SETTINGS, *, texts=TEXTS, vocab=300):
    torch.manual_seed(seed)
    model = TwoTowers(settings, tokenizer=train_tokenizer(texts, vocab_size=vocab, context=settings.text.context))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model.eval()


def changed(**fields):
    image = {k.removeprefix("image_"): v for k, v in fields.items() if k.startswith("image_")}
    text = {k.removeprefix("text_"): v for k, v in fields.items() if k.startswith("text_")}
    rest = {k: v for k, v in fields.items() if not k.startswith(("image_", "text_"))}
    towers = {"image": replace(SETTINGS.image, **image), "text": replace(SETTINGS.text, **text)}
    return replace(SETTINGS, **towers, **rest)


def features(model):
    return model.embed_image(PIXELS), model.embed_text(TEXTS)


def test_both_ends_are_the_models_themselves():
    first, second = build(0), build(1)
    for alpha, end in ((0, first), (1, second)):
        between = interpolate(first, second, alpha=alpha)
        assert all(torch.equal(value, end.state_dict()[name]) for name, value in between.state_dict().items())
        for ours, wanted in zip(features(between), features(end), strict=True):
            assert torch.equal(ours, wanted)


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_every_weight_lies_between(alpha):
    first, second = build(0), build(1)
    between = interpolate(first, second, alpha=alpha).state_dict()
    one, other = first.state_dict(), second.state_dict()
    floats = [name for name, value in one.items() if value.is_floating_point()]
    assert any("running_var" in name for name in floats)
    for name in floats:
        torch.testing.assert_close(between[name], (1 - alpha) * one[name] + alpha * other[name])


def test_a_scale_lies_between_as_its_logarithm():
    first, second = build(0), build(1)
    for model, scale in ((first, 10.0), (second, 90.0)):
        model.objective.scales()["instances"].log_scale.data.fill_(torch.tensor(scale).log())
    assert interpolate(first, second, alpha=0.5).scale("instances") == pytest.approx(30.0)


def test_a_term_that_only_one_has_is_that_of_the_second():
    nested = changed(terms=(ContrastSettings(), ContrastSettings(name="classes", texts="classes", dims=8)))
    first, second = build(0), build(1, nested)
    there, back = interpolate(first, second, alpha=0.5), interpolate(second, first, alpha=0.5)
    assert there.settings.views == second.settings.views
    assert there.scale("classes") == second.scale("classes")
    assert back.settings.views == first.settings.views
    assert torch.equal(there.image.head.weight, back.image.head.weight)


def test_neither_model_is_changed():
    first, second = build(0), build(1)
    before = [copy.deepcopy(model.state_dict()) for model in (first, second)]
    between = interpolate(first, second, alpha=0.5)
    between.image.head.weight.data.zero_()
    for model, state in zip((first, second), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_counts_of_batches_keep_the_larger():
    first, second = build(0), build(1)
    name = next(name for name in first.state_dict() if name.endswith("num_batches_tracked"))
    first.state_dict()[name].fill_(7)
    second.state_dict()[name].fill_(3)
    assert interpolate(first, second, alpha=0.9).state_dict()[name] == 7


def test_other_whole_numbers_must_be_equal():
    first, second = build(0), build(1)
    for model, value in ((first, 1), (second, 2)):
        model.image.register_buffer("table", torch.tensor([value]))
    with pytest.raises(UserError, match=r"image\.table"):
        interpolate(first, second, alpha=0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, 50, float("nan")])
def test_a_share_outside_is_an_error(alpha):
    model = build()
    with pytest.raises(UserError, match="from 0 to 1"):
        interpolate(model, model, alpha=alpha)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("image.name", {"image_name": "test_resnet"}),
        ("image.size", {"image_size": 64}),
        ("image.head", {"image_head": "affine"}),
        ("image.pool", {"image_pool": "map"}),
        ("text.layers", {"text_layers": 2}),
        ("text.context", {"text_context": 12}),
        ("text.eps", {"text_eps": 1e-6}),
        ("text.name", {"text_name": "bert"}),
        ("text.pool", {"text_pool": "mean"}),
        ("text.options", {"text_options": {"hidden_act": "gelu"}}),
        ("width", {"width": 8}),
    ],
)
def test_a_field_that_differs_is_named(name, fields):
    with pytest.raises(UserError, match=f"the models differ in {name}: "):
        interpolate(build(), build(1, changed(**fields)), alpha=0.5)


def test_a_model_without_texts_does_not_go_with_one_that_has_them():
    alone = TwoTowers(replace(SETTINGS, text=None, terms=()), tokenizer=None)
    with pytest.raises(UserError, match="differ in text"):
        interpolate(build(), alone, alpha=0.5)


def test_other_normalisation_is_named():
    first, second = build(0), build(1)
    second.image.set_normalisation(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    with pytest.raises(UserError, match=r"image\.mean"):
        interpolate(first, second, alpha=0.5)


def test_other_words_are_an_error():
    with pytest.raises(UserError, match="differ in their tokenizers"):
        interpolate(build(), build(texts=[*TEXTS, "a blue sky over blue hills"]), alpha=0.5)


def test_a_bias_that_only_one_has_is_named():
    biased = changed(terms=(ContrastSettings(scale=ScaleSettings(bias=-1.0)),))
    with pytest.raises(UserError, match=r"objective\.terms\.instances\.scale\.bias"):
        interpolate(build(), build(1, biased), alpha=0.5)


def test_what_only_speaks_of_training_may_differ():
    training = changed(
        image_locked=True, image_weights="hub", image_drop_path=0.1, text_dropout=0.1, recipe="unicl", text_pool="eos"
    )
    between = interpolate(build(), build(1, training), alpha=0.5)
    assert between.settings.recipe == "unicl"
    assert between.settings.image.locked


def test_models_that_were_saved_and_read_meet(tmp_path):
    """Each then names its text model and tokenizer by its own folder."""
    torch.manual_seed(0)
    folder = tmp_path / "texts"
    build(0, changed(text_name="bert")).text.save_config(folder)
    models = []
    for seed in (0, 1):
        model = build(seed, changed(text_name=str(folder)))
        model.save(tmp_path / str(seed))
        models.append(load_model(tmp_path / str(seed)))
    assert models[0].settings.text.name != models[1].settings.text.name
    between = interpolate(*models, alpha=0.5)
    between.save(tmp_path / "between")
    again = load_model(tmp_path / "between")
    for ours, wanted in zip(features(again), features(between), strict=True):
        assert torch.equal(ours, wanted)


ADAPTED = changed(image_lora=2, text_lora=3)


def test_a_merged_model_has_plain_weights_and_equal_features(tmp_path):
    model = build(0, ADAPTED)
    merged = merge(model)
    assert (merged.settings.image.lora, merged.settings.text.lora) == (0, 0)
    assert set(merged.state_dict()) == set(build(0).state_dict())
    assert {n for n, p in merged.named_parameters() if p.requires_grad} == {n for n, _ in build(0).named_parameters()}
    for ours, wanted in zip(features(merged), features(model), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
    merged.save(tmp_path / "merged")
    for ours, wanted in zip(features(load_model(tmp_path / "merged")), features(merged), strict=True):
        assert torch.equal(ours, wanted)
    assert (model.settings.image.lora, model.settings.text.lora) == (2, 3)
    assert any("lora_A" in name for name in model.state_dict())


def test_a_model_without_adapters_is_merged_already():
    model = build()
    assert merge(model) is model


def test_an_adapted_model_is_saved_and_read_with_its_adapters(tmp_path):
    model = build(0, ADAPTED)
    model.save(tmp_path / "adapted")
    again = load_model(tmp_path / "adapted")
    assert again.settings.image.lora == 2
    for ours, wanted in zip(features(again), features(model), strict=True):
        assert torch.equal(ours, wanted)


def test_an_adapted_model_meets_the_one_it_was_trained_from():
    plain, adapted = build(0), build(0, ADAPTED)
    between = interpolate(plain, adapted, alpha=0.5).state_dict()
    one, other = plain.state_dict(), merge(adapted).state_dict()
    assert set(between) == set(one)
    name = "image.backbone.conv_head.weight"
    torch.testing.assert_close(between[name], (one[name] + other[name]) / 2)
