import pytest

from unicl.data.collate import FindingValues
from unicl.errors import UserError
from unicl.model import ModelSettings
from unicl.objective.terms import ContrastSettings
from unicl.recipes.finetune import finetune, kind_of, layer_of
from unicl.recipes.recipe import stages_of

NESTED = (ContrastSettings(texts="captions"), ContrastSettings(name="classes", texts="classes", dims=8))


def test_a_model_goes_on_as_it_is_and_both_towers_learn_block_by_block():
    settings = ModelSettings(terms=NESTED, width=16)
    recipe = finetune(settings, layer_decay=0.75)
    assert (recipe.terms, recipe.width, recipe.zero_shot) == (NESTED, 16, settings.zero_shot)
    assert recipe.data.keys == "typed"
    assert finetune(ModelSettings()).data.keys == "label"
    (stage,) = stages_of(recipe)
    assert stage.image.decay == stage.text.decay == 0.75
    assert stages_of(finetune(ModelSettings(text=None)))[0].text is None


def test_an_uncertain_finding_counts_as_it_is_said():
    counted = {name: finetune(ModelSettings(), uncertain=name).data.findings for name in ("present", "absent")}
    assert counted["present"] == FindingValues(absent=-1.0, uncertain=1.0)
    assert counted["absent"] == FindingValues(absent=-1.0, uncertain=-1.0)
    # Between a no and a yes, it is left out (`unicl.objective.classify`).
    assert 0 < finetune(ModelSettings()).data.findings.uncertain < 1


def test_auto_is_the_loss_that_fits_the_data_and_the_model():
    several = {"several": False, "findings": False}
    assert kind_of("auto", texts=True, **several) == "contrast"
    assert kind_of("auto", texts=False, **several) == "softmax"
    assert kind_of("auto", texts=True, several=True, findings=False) == "sigmoid"
    assert kind_of("auto", texts=True, several=False, findings=True) == "sigmoid"
    assert kind_of("unicl", texts=True, several=True, findings=False) == "contrast"


def test_a_loss_that_cannot_learn_from_the_data_is_refused():
    with pytest.raises(UserError, match=r"learns from labels, and the data has findings"):
        kind_of("unicl", texts=True, several=False, findings=True)
    with pytest.raises(UserError, match=r"this model reads none"):
        kind_of("unicl", texts=False, several=False, findings=False)
    with pytest.raises(UserError, match=r"unknown loss 'unclip'"):
        kind_of("unclip", texts=True, several=False, findings=False)
    with pytest.raises(UserError, match=r"unknown uncertain"):
        finetune(ModelSettings(), uncertain="maybe")


def test_the_layer_reads_the_vector_that_meets_the_texts():
    layer = layer_of("sigmoid", findings=True, unmentioned="ignored")
    assert (layer.loss, layer.of, layer.unmentioned, layer.reads) == ("sigmoid", "findings", "ignored", "whole")
    assert layer_of("softmax", findings=False, unmentioned="absent").loss == "softmax"
