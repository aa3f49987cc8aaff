from dataclasses import replace

import pytest
import torch
from torch import nn

from unicl import compare
from unicl.data.collate import class_texts
from unicl.data.prompts import templates
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers, load_model
from unicl.objective.terms import ClassifySettings, ClassName, ContrastSettings
from unicl.similarity.scale import ScaleSettings
from unicl.space import Finding, Sample
from unicl.towers.image import ImageSettings
from unicl.use.head import has_bias, level, with_contrasts, with_head, write_start
from unicl.use.merge import merge

NAMES = ("red flower", "temple", "water")
CLASSES = tuple(ClassName(label=name, key=k + 1) for k, name in enumerate(NAMES))
SOFTMAX = ClassifySettings(reads="whole")
SIGMOID = ClassifySettings(reads="whole", loss="sigmoid")
PIXELS = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def headed(model, settings=SOFTMAX, *, classes=CLASSES, names=None):
    generator = torch.Generator().manual_seed(0)
    return with_head(model, classes, settings=settings, texts=class_texts("auto", names=names), generator=generator)


def logits(model):
    """What the layer itself says, as in training."""
    layer = model.objective.terms["classes"]
    with torch.no_grad():
        return layer.head(layer.seen(model.encode_images(PIXELS)))


def sigmoid_model():
    torch.manual_seed(0)
    scale = ScaleSettings(init=10.0, max=None, bias=-4.0)
    settings = ModelSettings(
        image=ImageSettings(name="test_vit", size=32), width=16, terms=(ContrastSettings(loss="sigmoid", scale=scale),)
    )
    from unicl.data.text import train_tokenizer
    from unicl.towers.text import TextSettings

    tokenizer = train_tokenizer(["a red flower", "a temple by the water"], vocab_size=300, context=16)
    return TwoTowers(replace(settings, text=TextSettings(layers=1, dim=32, heads=2)), tokenizer=tokenizer).eval()


def test_before_the_first_step_the_layer_says_what_zero_shot_says(model):
    start = headed(model)
    vectors = model.classifier(NAMES, templates=templates("en"))
    scores = model.scale("classes") * model.embed_image(PIXELS, view="classes") @ vectors.T
    assert torch.allclose(logits(start), scores, atol=1e-5)
    assert torch.equal(logits(start).argmax(1), scores.argmax(1))
    # The same by the way that `unicl evaluate` and `unicl classify` take.
    own = start.embed_image(PIXELS, view="classes") @ start.classifier(NAMES, templates=("{}",)).T
    assert torch.allclose(own, scores, atol=1e-5)
    assert start.objective.terms["classes"].settings.dims == 8
    assert start.settings.text is None


def test_several_names_of_a_class_are_one_vector_between_them(model):
    start = headed(model, names={"temple": ("temple", "red flower")})
    row = start.objective.terms["classes"].head.weight[1].detach()
    both = model.classifier(("temple", "red flower"), templates=templates("en"))
    wanted = model.scale("classes") * nn.functional.normalize(both.mean(0), dim=0)
    assert torch.allclose(row, wanted, atol=1e-5)


def test_a_locked_tower_and_adapters_are_let_loose(model):
    settings = replace(model.settings, image=replace(model.settings.image, locked=True))
    locked = TwoTowers(settings, tokenizer=model.tokenizer, image=model.image, text=model.text)
    assert not headed(locked).settings.image.locked
    assert not with_contrasts(locked).settings.image.locked
    adapted = replace(model.settings, image=replace(model.settings.image, lora=2))
    torch.manual_seed(0)
    small = TwoTowers(adapted, tokenizer=model.tokenizer).eval()
    start = headed(small)
    assert start.settings.image.lora == 0
    assert torch.allclose(start.embed_image(PIXELS), merge(small).embed_image(PIXELS), atol=1e-5)


def test_a_sigmoids_layer_is_as_sure_of_each_class_as_it_is_common(model, photos):
    every = [path for path in sorted(photos.rglob("*.jpg")) if path.stem != "cut"]
    known = [Finding(int(k % 4 == 0)) for k in range(len(every))]
    samples = [Sample(id=p.name, image=p, findings=(("temple", f), ("water", f))) for p, f in zip(every, known)]
    classes = (CLASSES[1], CLASSES[2])
    start = headed(model, replace(SIGMOID, of="findings"), classes=classes)
    before = start.objective.terms["classes"].head.weight.clone()
    level(start, samples)
    layer = start.objective.terms["classes"]
    assert torch.equal(layer.head.weight, before)
    with torch.no_grad():
        mean = layer.head(layer.seen(start.encode_images([str(p) for p in every]))).mean(0)
    assert torch.allclose(mean.sigmoid(), torch.full((2,), 0.25), atol=1e-4)


def test_a_model_of_a_sigmoid_brings_its_own_bias(model):
    own = sigmoid_model()
    assert has_bias(own)
    assert not has_bias(model)
    assert torch.allclose(headed(own, SIGMOID).objective.terms["classes"].head.bias, torch.full((3,), -4.0))
    # Between classes, a bias that all share says nothing.
    assert not headed(own).objective.terms["classes"].head.bias.any()


def test_without_texts_a_model_goes_on_with_its_own_classes_or_from_small_weights(classifier):
    own = classifier.objective.terms["classes"]
    names = (ClassName(label="temple", key=2), ClassName(label="flower", key=1))
    start = headed(classifier, classes=names).objective.terms["classes"]
    assert start.settings.reads == "features"
    assert torch.equal(start.head.weight, own.head.weight[[1, 0]])
    fresh = headed(classifier).objective.terms["classes"].head
    assert 0.008 < float(fresh.weight.detach().std()) < 0.012
    assert not fresh.bias.any()


def test_a_model_whose_classes_have_no_vector_is_sent_to_its_own_loss(parted):
    with pytest.raises(UserError, match=r"--loss unicl"):
        headed(parted)
    assert with_contrasts(parted).settings.terms == parted.settings.terms


def test_only_what_compares_stays_for_unicls_loss(model, classifier):
    same = with_contrasts(model)
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in same.state_dict().items())
    with pytest.raises(UserError, match=r"compares no images with texts"):
        with_contrasts(classifier)


def test_a_start_is_written_with_its_tokenizer_and_replaces_one_that_was_cut_off(model, tmp_path):
    (tmp_path / "start.part").mkdir()
    for _ in range(2):
        write_start(model, tmp_path / "start", tokenizer=tmp_path / "tokenizer")
    assert torch.equal(load_model(tmp_path / "start").embed_image(PIXELS), model.embed_image(PIXELS))
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()
    assert not (tmp_path / "start.part").exists()


def test_a_sigmoids_classes_have_probabilities_of_their_own(model):
    scores = torch.tensor([[2.0, 2.0, -1.0]])
    assert torch.equal(compare.class_shares(headed(model, SIGMOID), scores, pictures=1), scores.sigmoid())
    assert torch.equal(compare.class_shares(headed(model), scores, pictures=1), scores.softmax(1))
