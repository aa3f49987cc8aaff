"""ICMLM and tag prediction; that they learn, resume and agree over processes is in tests/test_recipes.py."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import oracles
from rank_work import model_and_batch
from tiny import hide_of, tiny, write_photos
from unicl import recipes
from unicl.data.collate import class_texts
from unicl.data.quarantine import Quarantine
from unicl.data.sources import load_all
from unicl.data.stream import Stream
from unicl.data.words import phrases
from unicl.data.words.masking import Hidden
from unicl.data.words.tags import Tags, tagged
from unicl.errors import UserError
from unicl.evaluate.run import evaluate
from unicl.model import load_model, words_of
from unicl.objective.terms import Masked
from unicl.recipes.masked import ICMLM
from unicl.run import Job, train
from unicl.space import NOTHING, TextType
from unicl.towers.image import ImageTower
from unicl.train.ranks import Ranks
from unicl.train.step import plain_step
from unicl.use.classify import classify
from unicl.use.search import search

MODELS = ["tfm", "att_fc"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"))


def stream_of(recipe, sources, tokenizer):
    return Stream(
        sources,
        replace(recipe.data, augment=None),
        texts=class_texts("en"),
        tokenizer=tokenizer,
        size=32,
        seed=7,
        quarantine=Quarantine(limit=0),
        hide=hide_of(recipe, sources, tokenizer),
    )


@pytest.mark.parametrize("model", MODELS)
def test_with_other_pictures_hidden_words_are_harder_to_find(model, data, tmp_path):
    recipe = replace(tiny("icmlm", steps=25), terms=recipes.icmlm(model=model).terms)
    train(Job(recipe=recipe, data=data[1:]), tmp_path / "run")
    trained = load_model(tmp_path / "run").eval()
    batch = stream_of(recipe, load_all(data[1:]), trained.tokenizer).batch(2)
    turned = [replace(batch, images=batch.images.roll(turn, dims=0)) for turn in range(1, 12)]
    with torch.no_grad():
        right, *wrong = (float(trained.objective(trained(each))[0]) for each in (batch, *turned))
    assert right + 0.05 < sum(wrong) / len(wrong)


def test_texts_that_only_helped_are_not_compared_with_pictures(data):
    made, _ = model_and_batch("icmlm", data)
    assert not made.settings.reads_texts
    assert replace(made.settings, terms=(*made.settings.terms, *tiny("clip").terms)).reads_texts
    with pytest.raises(UserError, match="texts only help to learn pictures"):
        classify(made.float(), [data[0]], names=("red", "blue"))
    with pytest.raises(UserError, match="texts only help to learn pictures"):
        search(made, [data[0]], query="red")
    report = evaluate(made, load_all(data), tasks=("zeroshot", "retrieval", "knn"))
    assert [result.task for result in report.results] == ["knn"]


@pytest.mark.parametrize("model", MODELS)
def test_the_language_model_has_no_gradient_and_reads_the_masked_caption(model, data):
    made, batch = model_and_batch("icmlm", data)
    words, settings = words_of(made.tokenizer), replace(made.settings.terms[0], model=model)
    widths = {"places": made.image.parts.width, "states": made.text.parts.width}
    made.objective.terms["masked"] = Masked(settings, **widths, words=words).double()
    captions = batch.captions
    hidden = captions.wanted != NOTHING
    assert hidden.any()
    assert not (batch.tokens[batch.text_index[captions.texts]][hidden] == captions.wanted[hidden]).any()
    assert not made.text.backbone.training
    plain_step(made, batch, ranks=Ranks(), precision="fp32")
    assert all(p.grad is None for p in made.text.parameters())
    assert all(p.grad is not None for p in made.objective.parameters())
    assert sum(float(p.grad.abs().sum()) for p in made.image.backbone.parameters() if p.grad is not None) > 0


def test_tag_prediction_is_binary_cross_entropy_over_all_tags(data, tmp_path):
    recipe = replace(tiny("tag_prediction", steps=2), tags=Tags(by="verbs", count=50))
    train(Job(recipe=recipe, data=data[1:]), tmp_path / "run")
    made = load_model(tmp_path / "run").eval()
    tags = json.loads((tmp_path / "run" / "tags.json").read_text())
    term = made.objective.terms["tags"]
    assert set(term.labels) == {tag for several in tags.values() for tag in several} >= {"red", "square", "number"}
    sources = [tagged(source, tags) for source in load_all(data[1:])]
    batch = stream_of(recipe, sources, None).batch(0)
    found = made(batch)
    scores = term.head(found.images.features)
    keys = {key: place for place, key in enumerate(k.key for k in made.settings.classes)}
    yes = torch.zeros_like(scores)
    own = batch.image_keys.only(TextType.CLASS)
    for row, key in zip(own.rows.tolist(), own.keys.tolist(), strict=True):
        yes[row, keys[key]] = 1
    assert (yes.sum(1) > 1).all()
    loss, _ = made.objective(found)
    # In the oracle's findings, -1 is a no.
    torch.testing.assert_close(loss, oracles.asked_findings(scores, 2 * yes - 1), rtol=1e-5, atol=1e-6)


def test_clusters_are_made_by_the_language_model_once_and_a_resumed_run_has_the_same(data, tmp_path):
    words = replace(tiny("icmlm").text, locked=False, parts=None)
    asked = recipes.tag_prediction(tags="clusters", concepts=3)
    assert asked.words.name == "package:minilm"
    recipe = replace(tiny("tag_prediction", steps=2, save_every=1), tags=asked.tags, words=words)
    job = Job(recipe=recipe, data=data[1:])
    train(job, tmp_path / "run")
    file = tmp_path / "run" / "tags.json"
    tags = json.loads(file.read_text())
    assert {tag for several in tags.values() for tag in several} == {"cluster 0", "cluster 1", "cluster 2"}
    file.write_text(
        json.dumps({text: ["cluster 0"] for text in tags} | {"a red square number 0": ["cluster 1", "cluster 2"]})
    )
    longer = replace(job, recipe=replace(recipe, fit=replace(recipe.fit, steps=3)))
    train(longer, tmp_path / "run", resume=True)
    assert load_model(tmp_path / "run").objective.terms["tags"].labels == ("cluster 0", "cluster 1", "cluster 2")


def test_a_missing_pipeline_and_data_without_captions_are_told_before_training(data, tmp_path, monkeypatch):
    recipe = tiny("icmlm")
    with pytest.raises(UserError, match="predicts captions from their images and needs both"):
        train(Job(recipe=recipe, data=data[:1]), tmp_path / "a")
    with pytest.raises(UserError, match="learns from the words of captions, but the data has none"):
        train(Job(recipe=tiny("tag_prediction"), data=data[:1]), tmp_path / "b")
    phrases._pipeline.cache_clear()
    for name in phrases.PIPELINES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="python -m spacy download en_core_web_sm"):
        train(Job(recipe=recipe, data=data[1:]), tmp_path / "c")
    phrases._pipeline.cache_clear()


@pytest.mark.parametrize(("towers", "places"), [("laptop", 1280), ("resnet50", 2048), ("vgg16", 512)])
def test_towers_are_the_papers_and_the_language_model_is_locked(towers, places):
    recipe = recipes.icmlm(towers=towers, model="att_fc", tags="verbs", tag_weight=0.1, concepts=77)
    assert recipe.text.locked
    assert recipe.image.weights == ("auto" if towers == "laptop" else "random")
    assert recipe.text.name == ("package:minilm" if towers == "laptop" else "google-bert/bert-base-uncased")
    assert recipe.data.hidden == Hidden(speech="verbs", count=77)
    assert [term.weight for term in recipe.terms] == [1.0, 0.1]
    assert recipe.tags == Tags(by="verbs", count=77)
    assert recipes.icmlm(towers=towers).tags is None
    assert ICMLM[towers].image.name == recipe.image.name
    with torch.device("meta"):
        tower = ImageTower(replace(recipe.image, weights="random"), width=places)
    assert (tower.parts.width, tower.feature_width) == (places, places)


def test_unknown_choices_are_named():
    with pytest.raises(UserError, match="unknown model 'attfc' .did you mean 'att_fc'"):
        recipes.icmlm(model="attfc")
    with pytest.raises(UserError, match="unknown tags 'noun' .did you mean 'nouns'"):
        recipes.tag_prediction(tags="noun")
    with pytest.raises(UserError, match="unknown tags 'none'"):
        recipes.tag_prediction(tags="none")
