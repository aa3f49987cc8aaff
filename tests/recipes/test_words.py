"""The systems of CLIP's figure 2, in their sizes."""

from dataclasses import replace

import pytest
import torch

from unicl import recipes
from unicl.data.text import load_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers
from unicl.objective.terms import BagSettings, CaptionSettings, ContrastSettings
from unicl.towers.weights.published import CLIP_MEAN


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def published(recipe):
    text = recipe.text or recipe.words
    tokenizer = load_tokenizer(text.tokenizer, context=text.context)
    settings = ModelSettings(image=recipe.image, text=recipe.text, width=recipe.width or 2048, terms=recipe.terms)
    with torch.device("meta"):
        return TwoTowers(settings, tokenizer=tokenizer)


def test_all_three_differ_from_clip_in_their_term_and_what_it_takes():
    of_clip = recipes.clip()
    for recipe in (recipes.caption_lm(), recipes.bag_prediction()):
        assert (recipe.text, recipe.data.captions, recipe.zero_shot.ensemble) == (None, True, "likelihood")
        assert recipe.words is not None
    contrast = recipes.bag_contrast()
    assert (contrast.terms, contrast.text.name, contrast.zero_shot) == (of_clip.terms, "bag", of_clip.zero_shot)
    for name in ("caption_lm", "bag_prediction", "bag_contrast"):
        assert replace(getattr(recipes, name)().image, head="linear", parts=None) == of_clip.image


def test_terms_are_those_of_the_names():
    [caption], [bag], [contrast] = (
        recipes.caption_lm().terms,
        recipes.bag_prediction(loss="sigmoid").terms,
        recipes.bag_contrast().terms,
    )
    assert isinstance(caption, CaptionSettings)
    assert (caption.task, caption.layers, caption.width, caption.heads) == ("captioning", 4, 256, 4)
    assert bag == BagSettings(loss="sigmoid")
    assert contrast == ContrastSettings()


def test_the_paper_size_is_clips_resnet_and_a_decoder_of_12_layers_of_512():
    model = published(recipes.caption_lm(towers="resnet50"))
    decoder = model.objective.terms["captions"].decoder
    words = 49_409 * 512 + 77 * 512 + 2 * 512
    layer = 2 * 4 * (512 * 512 + 512) + 2 * 4 * 512 * 512 + 5 * 512 + 3 * 2 * 512
    assert count(decoder) == words + 12 * layer + (2048 * 512 + 512) + 49_409
    assert model.image(torch.zeros(1, 3, 224, 224, device="meta")).parts.values.shape == (1, 49, 2048)
    # CLIP's ResNet-50 without its attention pool, which nobody would read.
    assert count(model.image) == 23_527_264


def test_bags_read_the_attention_pool_of_clips_resnet():
    contrast = recipes.bag_contrast(towers="resnet50")
    assert contrast.image.mean == CLIP_MEAN
    assert count(published(contrast).image) == 38_316_896  # openai/CLIP RN50, visual
    assert published(contrast).image.feature_width == 1024
    assert (contrast.data.batch, contrast.optim.lr, contrast.optim.beta2) == (32_768, 5e-4, 0.999)


def test_arguments_that_a_recipe_does_not_know_are_named():
    with pytest.raises(UserError, match="unknown towers 'resnet' .did you mean 'resnet50'"):
        recipes.caption_lm(towers="resnet")
    with pytest.raises(UserError, match="unknown loss 'sigmod' .did you mean 'sigmoid'"):
        recipes.bag_prediction(loss="sigmod")
    assert recipes.bag_prediction(batch=7).data.batch == 7
