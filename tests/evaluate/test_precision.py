from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from evaluate_oracles import tiny_model, units
from oracles import precision_at
from unicl.data.exclusive import LAYOUTS
from unicl.errors import UserError
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.job import Job, Options, Plan
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.precision import CUTS, cannot_be_precise, precision, run_precision
from unicl.evaluate.run import evaluate
from unicl.space import Sample


def test_precision_is_that_of_plain_loops_with_ties_and_without_the_query_itself():
    generator = torch.Generator().manual_seed(0)
    scores_QN = torch.randint(0, 6, (13, 40), generator=generator).double()
    right_QN = torch.rand(13, 40, generator=generator) < 0.3
    own_Q = torch.tensor([3, -1, 0, 39, -1, 5, 6, 7, -1, 9, 10, 11, 12])
    found = precision(scores_QN, right_QN, cuts=(1, 5, 10, 39), own_Q=own_Q)
    expected = [
        [precision_at(s, r, k, own=own) for k in (1, 5, 10, 39)]
        for s, r, own in zip(scores_QN.tolist(), right_QN.tolist(), own_Q.tolist())
    ]
    assert found.tolist() == expected
    assert precision(scores_QN, right_QN, cuts=(5,)).tolist() == [
        [precision_at(s, r, 5)] for s, r in zip(scores_QN.tolist(), right_QN.tolist())
    ]


def test_a_model_that_tells_nothing_apart_finds_nothing():
    right_QN = torch.arange(40)[None].expand(3, -1) < 20
    assert precision(torch.ones(3, 40), right_QN, cuts=(5, 10)).max() == 0


def of_layout(model, vectors_ND, labels, *, captions=False, asked=(), resamples=50):
    """A job over pictures with these vectors, of which the labels name the classes."""
    samples = tuple(
        Sample(id=str(k), image=b"%d" % k, labels=(name,), captions=(f"text {k} of {name}",) if captions else ())
        for k, name in enumerate(labels)
    )
    unit = F.normalize(vectors_ND, dim=-1)
    width = model.see(torch.zeros(1, model.settings.width), view="classes").shape[1]
    classes = F.normalize(unit[:, :width], dim=-1)
    pictures = Pictures(samples=samples, features=3 * unit, instances=unit, classes=classes)
    options = Options(bootstrap=Bootstrap(resamples=resamples), asked=asked, templates=("a photo of {}", "{}"))
    return Job(model=model, pictures=pictures, training=None, options=options)


def numbers(result, way):
    return {
        score.key.split("/")[2]: score.value for score in result.scores if score.key.startswith(f"precision/{way}/")
    }


@pytest.mark.parametrize("classes", [5, 8])
def test_an_oracle_finds_its_class_and_chance_is_one_in_as_many_as_there_are_classes(model, classes):
    labels = [name for name in LAYOUTS[classes] for _ in range(200)]
    place = torch.tensor([LAYOUTS[classes].index(name) for name in labels])
    noise = units(len(labels), model.settings.width, seed=classes)
    oracle = F.one_hot(place, model.settings.width).float() + 0.05 * noise
    found = run_precision(of_layout(model, oracle, labels))
    for way in ("i2i", "i2i_features"):
        assert numbers(found, way) == dict.fromkeys(["p5", "p10", "p50", "p100"], 1.0)
    assert found.facts["image to image, precision by chance"] == pytest.approx(199 / (200 * classes - 1))
    assert found.notes == ()
    blind = run_precision(of_layout(model, noise, labels))
    for way in ("i2i", "i2i_features"):
        assert all(abs(value - 1 / classes) < 0.01 for value in numbers(blind, way).values())
    # Two prompts a class ask: sixteen queries, of which each number has a deviation of several hundredths.
    assert blind.facts["prompt to image, queries"] == 2 * classes
    assert blind.facts["prompt to image, precision by chance"] == pytest.approx(1 / classes)
    assert abs(numbers(blind, "t2i")["p100"] - 1 / classes) < 0.06


def test_prompts_ask_for_the_images_that_lie_near_them(model):
    names = list(LAYOUTS[5])
    vectors = torch.cat([model.encode_texts([name], parts=False).whole.repeat(30, 1) for name in names])
    labels = [name for name in names for _ in range(30)]
    vectors = vectors + 1e-3 * units(len(labels), vectors.shape[1], seed=0)
    job = of_layout(model, vectors, labels)
    job = replace(job, options=replace(job.options, templates=("{}",)))
    found = run_precision(job)
    assert numbers(found, "t2i") == {"p5": 1.0, "p10": 1.0, "p50": pytest.approx(0.6), "p100": pytest.approx(0.3)}
    assert "prompt to image: no more than 30.0% can be reached at 100, as some classes are smaller" in found.notes


def test_given_sentences_and_images_are_the_queries_and_none_finds_itself(colours):
    model = tiny_model()
    images = [sample for sample in colours.samples if sample.id != "broken.png"]
    asked = [replace(images[0], captions=()), Sample(id="t", captions=("red", "a red thing"), labels=("red",))]
    report = evaluate(
        model,
        [colours],
        tasks=["precision"],
        asked=[replace(colours, samples=tuple(asked))],
        bootstrap=Bootstrap(resamples=20),
    )
    result = report.results[0]
    assert result.facts["image to image, queries"] == 1
    assert result.facts["sentence to image, queries"] == 2
    vectors = model.embed_image([sample.image for sample in images])
    scores = (vectors[:1] @ vectors.T)[0].double().tolist()
    right = [sample.labels == images[0].labels for sample in images]
    assert numbers(result, "i2i")["p5"] == precision_at(scores, right, 5, own=0)
    assert set(numbers(result, "i2i")) == {"p5", "p10"}
    assert "image to image: no precision @50, @100, as there are only 19 answers" in result.notes


def test_images_ask_for_captions_of_their_class(model, colours):
    report = evaluate(model, [colours], tasks=["precision"], bootstrap=Bootstrap(resamples=20))
    images = [sample for sample in colours.samples if sample.id != "broken.png"]
    texts = [(text, sample.labels) for sample in images for text in sample.captions]
    table = model.embed_image([s.image for s in images]).double() @ model.embed_text([t for t, _ in texts]).double().T
    expected = [
        precision_at(row, [labels == sample.labels for _, labels in texts], 10)
        for row, sample in zip(table.tolist(), images)
    ]
    assert numbers(report.results[0], "i2t")["p10"] == pytest.approx(sum(expected) / len(expected), abs=0.02)


def test_a_query_with_a_label_that_no_image_has_is_named(model, colours):
    asked = replace(colours, samples=(Sample(id="t", captions=("x",), labels=("rad",)),))
    with pytest.raises(
        UserError, match=r"a query has the label 'rad', which no image of the data has .did you mean 'red'"
    ):
        evaluate(model, [colours], tasks=["precision"], asked=[asked])


def test_what_cannot_be_measured_says_why(model):
    def why(*labels, **options):
        samples = tuple(Sample(id=str(k), image=b"%d" % k, labels=each) for k, each in enumerate(labels))
        return cannot_be_precise(Plan(model=model, samples=samples, training=None, options=Options(**options)))

    assert why(()) == "the data has no labels"
    assert why(("a",), ("a",)) == "there is only one class, 'a'"
    assert why(("a",), ("b",)) == "there are only 2 images to find, and precision@5 takes more"
    assert why(*[(name,) for name in "ababab"]) is None
    assert "the prompts have none for the class 'b'" in why(*[(n,) for n in "ababab"], templates={"a": ("x",)})
    assert CUTS == (5, 10, 50, 100)
