from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from evaluate_oracles import COLOURS, all_cosines, outcome, parts_model, tiny_model
from unicl import compare
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.classification import cannot_zero_shot, own_classes, run_zero_shot
from unicl.evaluate.job import Job, Options, Plan
from unicl.evaluate.page import to_html
from unicl.evaluate.pictures import embed_pictures
from unicl.evaluate.report import Report, to_json, to_markdown
from unicl.evaluate.terminal import print_report

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


def of_parts(job, *ensemble, **settings):
    model = parts_model(*ensemble, **settings)
    pictures = embed_pictures(model, job.pictures.samples)
    return replace(job, model=model, pictures=pictures, options=replace(job.options, templates=TEMPLATES))


@pytest.mark.parametrize("ensemble", ["similarities", "probabilities", "best"])
def test_a_model_of_parts_is_read_prompt_by_prompt(job, ensemble):
    made = of_parts(job, ensemble)
    result = run_zero_shot(made)
    names = sorted(COLOURS)
    scores = compare.class_scores(made.model, made.pictures.embedding, names, templates=TEMPLATES)
    right = [names[k] in s.labels for k, s in zip(scores.argmax(1).tolist(), made.pictures.samples, strict=True)]
    assert {s.key: s.value for s in result.scores}["zeroshot/top1"] == pytest.approx(sum(right) / 20)
    assert result.facts["compared by"] == "tokenwise"
    assert result.facts["templates"] == 2
    assert result.title == "Zero-shot classification"
    one = result.mistakes["images"][0]
    row = [s.id for s in made.pictures.samples].index(one.id)
    shares = compare.class_shares(made.model, scores, pictures=20)[row]
    assert one.found[0].score == pytest.approx(float(shares.max()))


def test_numbers_that_depend_on_the_set_say_so_wherever_they_are_shown(job):
    result = run_zero_shot(of_parts(job, "best", standardise=True))
    note = "z-scored over these 20 pictures: predictions depend on the set"
    assert note in result.notes
    assert result.title == "Zero-shot classification, z-scored over these 20 pictures"
    report = Report(title="a", facts={}, level=0.95, results=(result,))
    console = Console(record=True, width=200, file=StringIO())
    print_report(report, console=console)
    for shown in (to_json(report), to_markdown(report), to_html(report), console.export_text()):
        # A terminal may break a line anywhere.
        one_line = " ".join(shown.split())
        assert note in one_line
        assert result.title in one_line


def test_one_picture_alone_is_not_standardised_and_says_so(job):
    made = of_parts(job, "best", standardise=True)
    result = run_zero_shot(
        with_options(replace(made, pictures=made.pictures.take(torch.tensor([3]))), names=[*COLOURS])
    )
    assert result.title == "Zero-shot classification"
    assert "a single picture is not z-scored" in result.notes[0]


def test_classes_may_have_prompts_of_their_own(job):
    own = {name: [f"a {name} picture"] * (k + 1) for k, name in enumerate(COLOURS)}
    result = run_zero_shot(with_options(job, templates=own))
    same = run_zero_shot(with_options(job, templates=("a {} picture",)))
    assert [s.value for s in result.scores] == [s.value for s in same.scores]
    assert result.facts["prompts"] == "1 to 4 of each class's own"
    plan = with_options(job, templates={"red": ["red"], "gren": ["green"]}).plan
    assert "none for the class 'blue'" in cannot_zero_shot(plan)


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
    assert cannot_zero_shot(plan) == "the model has no class 'grey' (did you mean 'gray'?)"
    bare = tiny_model(texts=False, recipe="supcon")
    assert "'supcon' and has neither text tower nor classifier" in cannot_zero_shot(replace(plan, model=bare))
