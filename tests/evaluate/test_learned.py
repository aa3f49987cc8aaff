from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from evaluate_oracles import colour_samples, elected, neighbours_of, tiny_model
from unicl.errors import UserError
from unicl.evaluate.learned import cannot_learn, divide, run_neighbours, run_probe
from unicl.evaluate.pictures import embed_pictures
from unicl.space import Sample


@pytest.fixture(scope="module")
def learning(job, model, tmp_path_factory):
    """The same job with training images of its own."""
    samples = colour_samples(tmp_path_factory.mktemp("more"), each=6, start=1000)
    return replace(job, training=embed_pictures(model, samples))


def test_the_data_is_split_with_every_class_in_both_parts(job):
    parts = divide(job)
    assert len(parts.training.samples) == 16
    assert sorted(s.labels[0] for s in parts.test.samples) == ["blue", "green", "grey", "red"]
    assert not {s.id for s in parts.training.samples} & {s.id for s in parts.test.samples}
    assert parts.notes == ()


def test_training_data_of_its_own_leaves_all_images_to_measure_on(learning):
    parts = divide(learning)
    assert parts.training.samples == learning.training.samples
    assert parts.test.samples == learning.pictures.samples


def test_classes_with_one_image_are_learned_and_not_measured(job):
    samples = (replace(job.pictures.samples[0], labels=("odd",)), *job.pictures.samples[1:])
    parts = divide(replace(job, pictures=replace(job.pictures, samples=samples)))
    assert "odd" in {s.labels[0] for s in parts.training.samples}
    assert "odd" not in {s.labels[0] for s in parts.test.samples}
    assert parts.notes == ("classes with a single image, which is learned and not measured: 1",)


def test_a_class_that_was_never_learned_is_an_error(learning):
    few = learning.training.take(torch.arange(18))
    with pytest.raises(UserError, match="label 'grey' of the test data is not in the training data;"):
        divide(replace(learning, training=few))


def test_images_in_both_parts_are_told(job):
    parts = divide(replace(job, training=job.pictures))
    assert parts.notes == ("images that are in the training and in the test data, so that the numbers flatter: 20",)


def test_the_probe_learns_the_colours_and_reports_its_fit(learning):
    result = run_probe(learning)
    assert result.scores[0].value > 0.8
    assert result.facts["training images"] == 24
    assert result.facts["converged"] is True
    assert result.facts["features"] == learning.pictures.features.shape[1]
    assert 7 <= result.facts["strengths tried"] <= 15


def test_the_probe_is_the_same_again_and_follows_the_seed(job):
    first, again = run_probe(job), run_probe(job)
    assert first == again
    other = run_probe(replace(job, options=replace(job.options, seed=5)))
    assert [m.id for m in divide(job).test.samples] != [
        m.id for m in divide(replace(job, options=replace(job.options, seed=5))).test.samples
    ]
    assert other.facts["images"] == first.facts["images"]


def test_neighbours_vote_on_features_and_on_the_class_view(learning):
    result = run_neighbours(learning)
    numbers = {score.key: score.value for score in result.scores}
    names = sorted({s.labels[0] for s in learning.pictures.samples})
    truth = [{names.index(s.labels[0])} for s in learning.training.samples]
    for view, attribute in (("features", "features"), ("class_view", "classes")):
        bank = F.normalize(getattr(learning.training, attribute), dim=-1)
        queries = F.normalize(getattr(learning.pictures, attribute), dim=-1)
        for k in (1, 5, 20):
            predicted = [elected(neighbours_of(query, bank, k), truth) for query in queries]
            right = [names[p] in s.labels for p, s in zip(predicted, learning.pictures.samples, strict=True)]
            assert numbers.pop(f"knn/{view}/k{k}/top1") == pytest.approx(sum(right) / len(right))
            numbers.pop(f"knn/{view}/k{k}/mean_per_class")
    assert numbers == {}


def test_a_model_without_texts_has_neighbours_on_features_only(job):
    model = tiny_model(texts=False, classes=("red",))
    pictures = embed_pictures(model, job.pictures.samples)
    result = run_neighbours(replace(job, model=model, pictures=pictures))
    assert {score.key.split("/")[1] for score in result.scores} == {"features"}


def test_reasons_why_it_cannot_be_done(job, learning):
    plan = job.plan
    assert cannot_learn(plan) is None
    assert cannot_learn(learning.plan) is None
    unlabelled = tuple(replace(s, labels=()) for s in plan.samples)
    assert cannot_learn(replace(plan, samples=unlabelled)) == "the data has no labels"
    assert cannot_learn(replace(learning.plan, samples=unlabelled)) == "the test or the training data has no labels"
    assert cannot_learn(replace(plan, samples=plan.samples[:5])) == "there is only one class, 'red'"
    alone = tuple(Sample(id=str(k), image=b"x", labels=(str(k),)) for k in range(4))
    assert "no class has a second image" in cannot_learn(replace(plan, samples=alone))
