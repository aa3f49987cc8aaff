from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from evaluate_oracles import tiny_model, units
from unicl.data.subset import part_rows
from unicl.errors import UserError
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.findings import cannot_find_findings, decided, probe, run_findings
from unicl.evaluate.job import Job, Options, Plan
from unicl.evaluate.pictures import Pictures
from unicl.evaluate.run import evaluate
from unicl.model import TwoTowers
from unicl.objective.terms import ClassifySettings, ClassName
from unicl.space import Finding, Sample

NAMES = ("red", "round", "No Finding")


def pictures_of(model, size=240, *, seed=0):
    """Pictures with random vectors whose features tell the findings, one cell in ten uncertain or not mentioned."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, 12, generator=generator)
    cells = (features[:, :3] + 0.7 * torch.randn(size, 3, generator=generator) > 0).long()
    chance = torch.rand(size, 3, generator=generator)
    cells[chance < 0.05] = int(Finding.UNCERTAIN)
    cells[(chance > 0.05) & (chance < 0.1) & (cells == 0)] = int(Finding.UNMENTIONED)
    samples = tuple(
        Sample(id=str(k), image=b"%d" % k, findings=tuple(zip(NAMES, map(Finding, row))))
        for k, row in enumerate(cells.tolist())
    )
    unit = units(size, model.settings.width, seed=seed)
    return Pictures(samples=samples, features=features, instances=unit, classes=model.see(unit, view="classes"))


def told(pictures, name):
    """The rows that are asked for a finding, and whether it is there: absent and not mentioned are no."""
    known = [dict(sample.findings)[name] for sample in pictures.samples]
    rows = [k for k, value in enumerate(known) if value != Finding.UNCERTAIN]
    return rows, [known[k] == Finding.PRESENT for k in rows]


@pytest.fixture(scope="module")
def job():
    model = tiny_model()
    options = Options(bootstrap=Bootstrap(resamples=100), test_fraction=0.25, templates=("a {} thing", "{}"))
    return Job(model=model, pictures=pictures_of(model), training=None, options=options)


@pytest.fixture(scope="module")
def result(job):
    return run_findings(job)


def value(result, key):
    return next(score for score in result.scores if score.key == f"findings/{key}")


def test_areas_by_name_are_scikit_learns(job, result):
    vectors = job.model.classifier(NAMES, templates=job.options.templates)
    absent = job.model.classifier(NAMES, templates=("no {}",))
    areas, against = [], []
    for column, name in enumerate(NAMES):
        rows, there = told(job.pictures, name)
        scores = job.pictures.classes @ vectors[column]
        areas.append(roc_auc_score(there, scores[rows]))
        assert value(result, f"zeroshot/{name}").value == pytest.approx(areas[-1], abs=1e-12)
        assert value(result, f"zeroshot/{name}").n == len(rows)
        less = scores if name == "No Finding" else scores - job.pictures.classes @ absent[column]
        against.append(roc_auc_score(there, less[rows]))
    assert value(result, "zeroshot/mean").value == pytest.approx(np.mean(areas), abs=1e-12)
    assert value(result, "against/mean").value == pytest.approx(np.mean(against), abs=1e-12)
    low, high = value(result, "zeroshot/mean").low, value(result, "zeroshot/mean").high
    assert low < value(result, "zeroshot/mean").value < high


def test_probes_learn_from_1_10_and_100_percent_and_are_scikit_learns_regressions(job, result):
    keys = [score.key for score in result.scores if "probe" in score.key]
    means = [f"findings/probe{percent}/mean" for percent in (1, 10, 100)]
    assert keys == [*means, *(f"findings/probe100/{name}" for name in NAMES)]
    assert result.facts["training images at 100%"] == 180
    assert 18 <= result.facts["training images at 10%"] <= 22
    assert result.facts["training images at 1%"] < 10
    assert value(result, "probe100/mean").value > 0.75
    assert value(result, "probe100/mean").value >= value(result, "probe1/mean").value
    order = torch.randperm(240, generator=torch.Generator().manual_seed(0))
    test, train = order[:60].sort().values, order[60:].sort().values
    parts = job.pictures.take(train), job.pictures.take(test)
    deviations = parts[0].features.double().std(0, correction=0)
    learnt, asked = (((each.features.double() - parts[0].features.double().mean(0)) / deviations) for each in parts)
    for name in NAMES:
        (rows, there), (asked_rows, truth) = (told(part, name) for part in parts)
        solver = LogisticRegression(C=1 / result.facts["L2 strength at 100%"], max_iter=1000)
        solver.fit(learnt[rows].numpy(), there)
        expected = roc_auc_score(truth, solver.decision_function(asked[asked_rows].numpy()))
        assert value(result, f"probe100/{name}").value == pytest.approx(expected, abs=1e-9)


def test_the_parts_are_drawn_by_the_seed_and_hold_each_other():
    samples = pictures_of(tiny_model()).samples
    one, ten = (set(part_rows(samples, fraction=fraction, seed=3)) for fraction in (0.01, 0.1))
    assert part_rows(samples, fraction=0.01, seed=3) == part_rows(samples, fraction=0.01, seed=3)
    assert part_rows(samples, fraction=0.1, seed=4) != part_rows(samples, fraction=0.1, seed=3)
    assert len(one & ten) >= 2
    assert decided([samples[row] for row in one]) == NAMES


def test_the_same_seed_gives_the_same_numbers_and_training_data_is_learned_whole(job, result):
    assert run_findings(job).scores == result.scores
    other = pictures_of(job.model, 100, seed=9)
    given = run_findings(replace(job, training=other))
    assert given.facts["training images at 100%"] == 100
    assert given.facts["split"] == "by image, 100 / 240"


def of_patients(pictures, each=4):
    samples = tuple(replace(sample, patient=f"p{row // each}") for row, sample in enumerate(pictures.samples))
    return replace(pictures, samples=samples)


def test_no_patient_is_learned_from_and_measured_on(job):
    given = replace(job, pictures=of_patients(job.pictures))
    assert run_findings(given).facts["split"] == "by patient, 45 / 15 (180 / 60 images)"
    both = run_findings(replace(given, training=given.pictures.take(torch.arange(6))))
    assert any("patients of one name in the training and in the test data: 2" in note for note in both.notes)
    alone = run_findings(replace(given, pictures=of_patients(job.pictures, each=1000)))
    assert any("all images are of one patient" in note for note in alone.notes)


def test_the_strength_is_that_of_the_best_area_on_a_part_held_out(job):
    part = job.pictures.take(torch.arange(100))
    shuffled = replace(part, features=part.features[torch.randperm(100, generator=torch.Generator().manual_seed(1))])
    weak, strong = (probe(each, part.features, NAMES, seed=0)[1] for each in (part, shuffled))
    assert weak in (1.0, 10.0, 100.0, 1e3, 1e4)
    assert strong in (1.0, 10.0, 100.0, 1e3, 1e4)
    ticks = []
    probe(part, part.features, NAMES, seed=0, tick=lambda: ticks.append(1))
    assert len(ticks) == 6


def test_findings_without_prompts_or_without_both_answers_are_named(job):
    options = replace(job.options, templates={"red": ("red",), "No Finding": ("nothing",)})
    found = run_findings(replace(job, options=options))
    assert found.notes == ("not told by name, since the prompts have none: round",)
    fixed = [replace(s, findings=(*s.findings[:1], ("round", Finding.PRESENT))) for s in job.pictures.samples]
    fixed = replace(job, pictures=replace(job.pictures, samples=tuple(fixed)))
    assert decided(fixed.pictures.samples) == ("red",)
    assert [score.key for score in run_findings(fixed).scores][:3] == [
        "findings/zeroshot/mean",
        "findings/zeroshot/red",
        "findings/against/mean",
    ]


def test_a_model_without_texts_is_probed_alone():
    model = tiny_model(texts=False)
    pictures = pictures_of(tiny_model())
    job = Job(model=model, pictures=pictures, training=None, options=Options(bootstrap=Bootstrap(resamples=20)))
    assert all("probe" in score.key for score in run_findings(job).scores)


def test_what_cannot_be_measured_says_why(model, colours):
    plain = Sample(id="a", image=b"a")
    both = [replace(plain, id=str(k), findings=(("x", known),)) for k, known in enumerate((1, 0))]

    def why(*samples):
        return cannot_find_findings(Plan(model=model, samples=samples, training=None, options=Options()))

    assert why(plain) == "the data has no findings (their columns are named with findings=A,B or findings=*)"
    assert why(both[0]) == "there is no finding that some of the images have and others do not"
    assert why(*both) is None
    with pytest.raises(UserError, match="findings: the data has no findings"):
        evaluate(model, [colours], tasks=["findings"])


def test_a_model_with_a_layer_of_findings_is_measured_by_it(job):
    names = ("round", "red")
    classes = tuple(ClassName(label=name, key=k + 1) for k, name in enumerate(names))
    settings = replace(
        job.model.settings, text=None, terms=(ClassifySettings(of="findings", loss="sigmoid"),), classes=classes
    )
    torch.manual_seed(0)
    model = TwoTowers(settings, tokenizer=None, image=job.model.image).eval()
    head = model.objective.terms["classes"].head
    seen = torch.randn(len(job.pictures.samples), head.in_features + 1, generator=torch.Generator().manual_seed(1))
    result = run_findings(replace(job, model=model, pictures=replace(job.pictures, classes=seen)))
    scores = (seen[:, :-1] @ head.weight.T + seen[:, -1:] * head.bias).detach()
    for name in names:
        rows, yes = told(job.pictures, name)
        wanted = roc_auc_score(yes, scores[rows, names.index(name)])
        assert value(result, f"layer/{name}").value == pytest.approx(wanted)
