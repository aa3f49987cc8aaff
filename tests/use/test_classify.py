import math

import pytest
import torch

from evaluate_oracles import parts_model
from unicl import compare
from unicl.data.prompts import templates
from unicl.errors import UserError
from unicl.use import classify as classifying
from unicl.use.classify import classify, parse_names
from unicl.use.results import json_lines, summary
from unicl.use.sheet import sheet

NAMES = ("red flower", "temple", "water")


def test_probabilities_are_the_softmax_of_scaled_cosines_in_the_class_view(model, photos):
    found = classify(model, [photos], names=NAMES, templates=("a photo of a {}.", "{}"), top=3, batch=5)
    assert len(found.rows) == 12
    for row in found.rows:
        image = model.embed_image([row.image], view="classes")[0].double()
        logits = []
        for name in NAMES:
            texts = model.embed_text([f"a photo of a {name}.", name], view="classes").double()
            mean = texts.mean(0)
            logits.append(model.scale("classes") * float(image @ (mean / mean.norm())))
        total = sum(math.exp(x) for x in logits)
        wanted = dict(zip(NAMES, (math.exp(x) / total for x in logits), strict=True))
        assert dict(row.answers) == pytest.approx(wanted, abs=1e-5)
        assert [p for _, p in row.answers] == sorted(wanted.values(), reverse=True) or len(row.answers) == 3


def test_only_the_best_are_kept_and_what_cannot_be_read_is_listed(model, photos):
    found = classify(model, [photos], names=NAMES, top=2)
    assert all(len(row.answers) == 2 and row.answers[0][1] >= row.answers[1][1] for row in found.rows)
    assert [item.id.rpartition("/")[2] for item in found.skipped] == ["cut.jpg"]


def test_chinese_names_get_chinese_templates(model, photos):
    one = photos / "temple" / "0.jpg"
    names = ("红花", "寺庙")
    assert classify(model, [one], names=names) == classify(model, [one], names=names, templates=templates("zh"))
    assert classify(model, [one], names=names) != classify(model, [one], names=names, templates=templates("en"))


def test_a_classifier_answers_with_its_own_classes(classifier, photos):
    found = classify(classifier, [photos], top=3)
    assert found.names == ("flower", "temple", "sky")
    row = found.rows[0]
    (head,) = classifier.objective.terms.values()
    logits = head.head(classifier.image_features([row.image]))[0]
    wanted = dict(zip(found.names, logits.softmax(0).tolist(), strict=True))
    assert dict(row.answers) == pytest.approx(wanted, abs=1e-5)
    some = classify(classifier, [photos], names=("sky", "flower"))
    assert set(dict(some.rows[0].answers)) == {"sky", "flower"}
    with pytest.raises(UserError, match="'temples' is none .did you mean 'temple'"):
        classify(classifier, [photos], names=("temples",))


@pytest.mark.parametrize("ensemble", ["similarities", "probabilities", "best"])
@pytest.mark.parametrize("waiting", [1, classifying.WAITING])
def test_a_model_of_parts_answers_prompt_by_prompt(photos, monkeypatch, ensemble, waiting):
    monkeypatch.setattr(classifying, "WAITING", waiting)
    model = parts_model(ensemble)
    found = classify(model, [photos], names=NAMES, templates=("a {}", "{}"), top=3, batch=5)
    assert found.note == ""
    images = model.encode_images([row.image for row in found.rows])
    scores = compare.class_scores(model, images, NAMES, templates=("a {}", "{}"))
    shares = scores if ensemble == "probabilities" else (model.scale("classes") * scores).softmax(1)
    for row, wanted in zip(found.rows, shares.tolist(), strict=True):
        assert dict(row.answers) == pytest.approx(dict(zip(NAMES, wanted, strict=True)), abs=5e-3)


def test_pictures_that_are_made_comparable_over_their_set_say_so_everywhere(photos):
    model = parts_model("best", standardise=True)
    found = classify(model, [photos], names=NAMES, templates="filip:2")
    assert found.note == "z-scored over these 12 pictures: predictions depend on the set"
    for shown in (summary(found), json_lines(found), sheet(found).note):
        assert found.note in shown
    one = classify(model, [found.rows[0].image], names=NAMES, templates="filip:2")
    assert "a single picture is not z-scored" in one.note
    assert one.note in summary(one)
    assert dict(one.rows[0].answers) != pytest.approx(dict(found.rows[0].answers), abs=1e-3)


def test_classes_with_prompts_of_their_own_are_asked_by_them(model, photos):
    own = {"temple": ["an old temple", "the temple"], "water": ["water"]}
    found = classify(model, [photos], names=("water", "temple"), templates=own)
    assert len(found.rows) == 12
    with pytest.raises(UserError, match="none for the class 'sky'"):
        classify(model, [photos], names=("sky", "temple"), templates=own)


def test_names_that_cannot_be_meant_are_refused(model, photos):
    with pytest.raises(UserError, match="no class names given"):
        classify(model, [photos])
    with pytest.raises(UserError, match="'red flower' is given 2 times"):
        classify(model, [photos], names=("red flower", "red_flower", "sky"))
    with pytest.raises(UserError, match="top=0"):
        classify(model, [photos], names=NAMES, top=0)
    with pytest.raises(UserError, match="none of the 1 pictures"):
        classify(model, [photos / "cut.jpg"], names=NAMES)


def test_names_are_typed_with_commas_or_read_from_a_file(tmp_path):
    assert parse_names("red fruit, green fruit,") == ("red fruit", "green fruit")
    assert parse_names("苹果，香蕉、橙子") == ("苹果", "香蕉", "橙子")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert parse_names(str(tmp_path / "names.txt")) == ("cat", "dog")
    with pytest.raises(UserError, match="cannot be read"):
        parse_names(str(tmp_path / "gone.txt"))
    with pytest.raises(UserError, match="no names"):
        parse_names(" , ")


def test_a_model_whose_weights_diverged_gives_no_answer(model, photos):
    kept = model.image.head.weight.detach().clone()
    with torch.no_grad():
        model.image.head.weight[0] = math.nan
    try:
        with pytest.raises(UserError, match="not finite"):
            classify(model, [photos], names=NAMES)
    finally:
        with torch.no_grad():
            model.image.head.weight.copy_(kept)
