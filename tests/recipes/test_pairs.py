"""ALIGN and ConVIRT against transformers' classes and plain formulas; what they learn is in tests/test_recipes.py."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from chinese_cases import TEXTS, pictures, save_align
from unicl.objective.terms import ContrastSettings, Objective
from unicl.published import load
from unicl.recipes import clip
from unicl.recipes.pairs import ALIGN, CONVIRT, align, convirt
from unicl.similarity.scale import ScaleSettings
from unicl.space import Columns, Embedding, Keys
from unicl.towers.heads import make_head, pool_tokens
from unicl.towers.text import TextSettings, TextTower
from unicl.train.learning import set_learning

SIGMA = 1 / 64


def paired(images, texts):
    """Columns in which row belongs to row."""
    keys = Keys.single(torch.arange(1, len(images) + 1))
    sides = [Embedding(whole=whole, features=whole) for whole in (images, texts)]
    return Columns(images=sides[0], image_keys=keys, texts=sides[1], text_keys=keys, text_counts=torch.ones(len(texts)))


def loss_of(recipe, images, texts):
    objective = Objective(recipe.terms, features=1).to(images.dtype)
    return objective(paired(images, texts))[0], objective


def unit(rows, *, seed, width=8):
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, dtype=torch.float64, generator=rng), dim=-1)


def at(recipe, *, scale):
    """The recipe with its temperature where a model's is."""
    return replace(recipe, terms=tuple(replace(t, scale=replace(t.scale, init=scale)) for t in recipe.terms))


def test_embeddings_are_aligns_and_its_loss_is_half_of_the_papers(tmp_path):
    original = save_align(tmp_path, temperature=SIGMA).eval()
    model, words = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    read = words(list(TEXTS[:3]), padding="max_length", truncation=True, max_length=64, return_tensors="pt")
    seen = torch.stack([torch.from_numpy(np.array(p)) for p in pictures(side=289)]).permute(0, 3, 1, 2)
    with torch.no_grad():
        output = original(pixel_values=seen / 127.5 - 1, **read, return_loss=True)
    images, texts = model.embed_image(seen), model.embed_text(list(TEXTS[:3]))
    for own, theirs in ((images, output.image_embeds), (texts, output.text_embeds)):
        assert float((own - F.normalize(theirs, dim=-1)).abs().max()) < 1e-5
    ours, _ = loss_of(at(align(), scale=1 / SIGMA), images, texts)
    assert float(ours.detach()) == pytest.approx(2 * float(output.loss), rel=1e-4)
    assert (model.settings.image.pool, model.settings.image.head) == (align().image.pool, align().image.head)
    assert (model.settings.text.pool, model.settings.text.head) == (align().text.pool, align().text.head)


def test_the_golden_loss_of_two_pairs_that_fit():
    both = torch.eye(2, dtype=torch.float64)
    loss, _ = loss_of(align(towers="b7"), both, both)
    assert float(loss.detach()) == pytest.approx(0.726523, abs=1e-6)


def test_sigma_divides_and_its_gradient_is_that_of_the_formula():
    images, texts = unit(6, seed=0), unit(6, seed=1)
    loss, objective = loss_of(at(align(), scale=4.0), images, texts)
    loss.backward()
    sigma = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    scores, own = images @ texts.T / sigma, torch.arange(6)
    wanted = sum(F.cross_entropy(table, own, label_smoothing=0.1) for table in (scores, scores.T))
    wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    learned = objective.terms["instances"].scale.temperature
    assert float(learned.grad) == pytest.approx(float(sigma.grad), rel=1e-10)


@pytest.mark.parametrize("towers", ["b7", "l2", "coyo"])
def test_aligns_pictures_are_squeezed_to_346_pixels_and_cut_to_289_and_their_width_is_that_of_the_last_stage(towers):
    recipe = align(towers=towers)
    assert (recipe.width, recipe.image.pool, recipe.image.head) == (None, "stage", "none")
    assert (recipe.image.size, recipe.image.frame.scale, recipe.image.frame.mode) == (289, 346, "squash")
    assert recipe.data.augment.shift
    assert recipe.optim.decline == "linear"


def test_convirt_at_equal_weights_is_clip_at_scale_ten():
    images, texts = unit(7, seed=2), unit(7, seed=3)
    [term] = convirt().terms
    halved = replace(convirt(), terms=(replace(term, image_weight=0.5),))
    ten = replace(clip(), terms=(ContrastSettings(scale=ScaleSettings(init=10.0)),))
    assert float(loss_of(halved, images, texts)[0]) == pytest.approx(float(loss_of(ten, images, texts)[0]), rel=1e-12)


def test_convirt_weighs_pictures_three_to_one_at_a_fixed_tenth():
    images, texts = unit(7, seed=2), unit(7, seed=3)
    loss, objective = loss_of(convirt(), images, texts)
    scores, own = 10 * images @ texts.T, torch.arange(7)
    wanted = 0.75 * F.cross_entropy(scores, own) + 0.25 * F.cross_entropy(scores.T, own)
    # The scale is a float32 logarithm.
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    assert not any(parameter.requires_grad for parameter in objective.parameters())


def test_convirts_heads_have_relu_between_two_layers_and_texts_take_the_largest_of_real_tokens():
    recipe = convirt(towers="resnet50")
    head = make_head(recipe.image.head, features=2048, width=recipe.width)
    assert [tuple(p.shape) for p in head.parameters()] == [(2048, 2048), (2048,), (512, 2048), (512,)]
    states, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])
    pooled = pool_tokens(states, pool=recipe.text.pool, tokens=mask.long(), mask=mask, eos_id=-1)
    assert pooled.tolist() == [[3.0]]


def test_convirts_first_six_layers_and_tables_are_locked():
    [stage] = CONVIRT["resnet50"].stages
    tower = TextTower(
        TextSettings(name="bert", layers=12, dim=16, heads=2, context=8), width=8, vocab_size=20, eos_id=1, pad_id=0
    )
    set_learning(tower, stage.text)
    still = {name.split(".")[3] for name, p in tower.named_parameters() if not p.requires_grad and ".layer." in name}
    assert still == {str(layer) for layer in range(6)}
    assert not any(p.requires_grad for name, p in tower.named_parameters() if "embeddings" in name)
    assert all(p.requires_grad for p in tower.head.parameters())


def test_every_size_of_both_can_be_made():
    assert math.isclose(align(towers="b7").terms[0].scale.init, 1.0)
    assert {align(towers=towers).text.context for towers in ALIGN} == {64}
    assert all(convirt(towers=towers).data.sentences for towers in CONVIRT)
