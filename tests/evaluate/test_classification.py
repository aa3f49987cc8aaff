from dataclasses import replace

import pytest
import torch

from evaluate_oracles import COLOURS, all_cosines, outcome, tiny_model
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.classification import cannot_zero_shot, own_classes, run_zero_shot
from unicl.evaluate.job import Job, Options, Plan
from unicl.evaluate.pictures import embed_pictures

TEMPLATES = ("a photo of a {}", "a {} picture")


def with_options(job, **changes):
    return replace(job, options=replace(job.options, **changes))


def test_zero_shot_numbers_are_those_of_the_models_classifier(job, model):
    result = run_zero_shot(with_options(job, templates=TEMPLATES))
    names = sorted(COLOURS)
    vectors = model.classifier(names, templates=TEMPLATES)
    scores = all_cosines(job.pictures.classes, vectors)
    truth = [names.index(sample.labels[0]) for sample in job.pictures.samples]
    outcomes = [outcome(row, {own}) for row, own in zip(scores, truth, strict=True)]
    numbers = {score.key: score.value for score in result.scores}
    assert numbers["zeroshot/top1"] == pytest.approx(sum(o[2] == 1 for o in outcomes) / 20)
    assert {(c.true, c.predicted) for c in result.confusion} == {(names[o[1]], names[o[0]]) for o in outcomes}
    assert result.facts["templates"] == 2
    assert result.facts["top-1 by chance"] == 0.25


def test_templates_follow_the_language_of_the_names(job):
    names = {"red": "红色", "green": "绿色", "blue": "蓝色", "grey": "灰色"}
    english, chinese = run_zero_shot(job), run_zero_shot(with_options(job, names=names))
    assert "{}" in str(english.facts["such as"])
    assert english.facts["such as"] != chinese.facts["such as"]
    assert {c.name for c in chinese.classes} == set(names.values())
    assert {c.label for c in chinese.classes} == set(names)


def test_images_without_a_label_are_left_out_and_counted(job):
    samples = tuple(replace(s, labels=()) if k < 3 else s for k, s in enumerate(job.pictures.samples))
    result = run_zero_shot(replace(job, pictures=replace(job.pictures, samples=samples)))
    assert result.facts["images"] == 17
    assert result.facts["images without a label, left out"] == 3


def test_few_classes_make_top_5_say_that_it_means_nothing(job):
    assert "top-5 is reached by any model" in run_zero_shot(job).notes[0]
    many = with_options(job, names=[*COLOURS, "pear", "plum"])
    assert run_zero_shot(many).notes == ()


def test_mistakes_show_probabilities_of_true_and_predicted_class(job):
    mistakes = run_zero_shot(job).mistakes["images"]
    assert mistakes
    for one in mistakes:
        assert one.found[0].text != one.wanted.text
        assert 0 <= one.wanted.score <= one.found[0].score <= 1
        assert one.image is not None


def test_a_model_without_texts_is_read_by_its_own_classifier(job):
    model = tiny_model(texts=False, classes=("grey", "red", "green", "blue"), recipe="cross_entropy")
    pictures = embed_pictures(model, job.pictures.samples)
    options = Options(bootstrap=Bootstrap(resamples=20))
    result = run_zero_shot(Job(model=model, pictures=pictures, training=None, options=options))
    head = model.objective.terms["classes"].head
    with torch.no_grad():
        logits = head(pictures.features)
    labels = ("grey", "red", "green", "blue")
    right = [labels[k] in s.labels for k, s in zip(logits.argmax(1).tolist(), pictures.samples, strict=True)]
    assert result.scores[0].value == pytest.approx(sum(right) / 20)
    assert result.title == "Classification by the model's own classes"
    assert own_classes(model) == labels


def test_reasons_why_it_cannot_be_done(job):
    plan = job.plan
    assert cannot_zero_shot(plan) is None
    unlabelled = tuple(replace(s, labels=()) for s in plan.samples)
    assert cannot_zero_shot(replace(plan, samples=unlabelled)) == "the data has no labels"
    one = tuple(s for s in plan.samples if s.labels == ("red",))
    assert cannot_zero_shot(replace(plan, samples=one)) == "there is only one class, 'red'"
    assert cannot_zero_shot(replace(plan, samples=one, options=Options(names=["red", "blue"]))) is None


def test_a_classifier_must_know_the_classes_and_a_model_must_have_one(job):
    strange = tiny_model(texts=False, classes=("red", "green", "blue", "gray"))
    plan = Plan(model=strange, samples=job.plan.samples, training=None, options=Options())
    assert cannot_zero_shot(plan) == "the model has no class 'grey', did you mean 'gray'?"
    bare = tiny_model(texts=False, recipe="supcon")
    assert "'supcon' and has neither text tower nor classifier" in cannot_zero_shot(replace(plan, model=bare))
