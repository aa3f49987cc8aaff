import math

import pytest
import torch

from evaluate_oracles import median, quantile, units
from unicl.evaluate.bootstrap import Bootstrap, means
from unicl.evaluate.classes import Classes
from unicl.evaluate.retrieval import Pairs, Ranks
from unicl.evaluate.scoring import class_mistakes, class_scores, confusions, measured, retrieval_scores
from unicl.evaluate.zeroshot import Truth, zero_shot

CLASSES = Classes(labels=("0", "1", "2", "3"), names=("pear", "plum", "apple", "fig"))


def draws(bootstrap, samples):
    drawn = []

    def keep(weights_RN):
        drawn.extend(weights_RN.long().tolist())
        return weights_RN[:, :1]

    bootstrap.bounds(keep, samples=samples)
    return drawn


def test_a_number_is_its_value_on_the_data_with_both_ends():
    values = torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    numbers = measured(means(values), samples=30, bootstrap=Bootstrap(resamples=200))
    assert [number[0] for number in numbers] == pytest.approx(values.double().mean(0).tolist())
    assert all(low < value < high for value, low, high in numbers)


def test_class_scores_have_a_name_a_key_and_every_class_that_has_samples():
    truth = Truth.of([{0}, {0}, {1}, {1}, {3}])
    hits = {"top-1": torch.tensor([1.0, 0, 1, 1, 0]), "top-5": torch.ones(5)}
    scores, classes = class_scores(
        "zeroshot", hits, truth=truth, classes=CLASSES, bootstrap=Bootstrap(resamples=50), title="a: "
    )
    assert [(s.key, s.name, round(s.value, 6), s.n) for s in scores] == [
        ("zeroshot/top1", "a: top-1", 0.6, 5),
        ("zeroshot/top5", "a: top-5", 1.0, 5),
        ("zeroshot/mean_per_class", "a: mean per class", 0.5, 5),
    ]
    assert [(c.label, c.name, c.value, c.n) for c in classes] == [
        ("0", "pear", 0.5, 2),
        ("1", "plum", 1.0, 2),
        ("3", "fig", 0.0, 1),
    ]
    assert all(s.low <= s.value <= s.high for s in (*scores, *classes))


def test_confusions_name_the_classes():
    outcomes = zero_shot(torch.tensor([[0.9, 0.1, 0, 0], [0.9, 0.1, 0, 0], [0, 0, 0, 1]]), Truth.of([{0}, {1}, {3}]))
    found = {(c.true, c.predicted): c.count for c in confusions(outcomes, classes=CLASSES)}
    assert found == {("pear", "pear"): 1, ("plum", "pear"): 1, ("fig", "fig"): 1}


def test_the_worst_mistakes_are_the_surest(job):
    pictures = job.pictures.take(torch.arange(4))
    scores = torch.tensor([[0.5, 0.4, 0.1, 0.0], [0.9, 0.1, 0, 0], [0.2, 0.1, 0.7, 0.0], [0, 0.6, 0.4, 0]])
    truth = Truth.of([{1}, {1}, {2}, {0, 2}])
    outcomes = zero_shot(scores, truth)
    found = class_mistakes(
        outcomes, pictures, truth=truth, classes=CLASSES, probabilities=lambda rows: scores[rows], most=2
    )
    assert [one.id for one in found] == [pictures.samples[1].id, pictures.samples[3].id]
    assert (found[0].wanted.text, found[0].rank, found[0].image) == ("plum", 2, pictures.samples[1].image)
    assert [(a.text, a.right) for a in found[1].found] == [("plum", False), ("apple", True), ("pear", True)]
    assert found[1].wanted.score == pytest.approx(0.4)


def test_no_mistakes_are_an_empty_list(job):
    truth = Truth.of([{0}])
    outcomes = zero_shot(torch.tensor([[1.0, 0, 0, 0]]), truth)
    pictures = job.pictures.take(torch.tensor([0]))
    options = {"truth": truth, "classes": CLASSES, "most": 3}
    assert class_mistakes(outcomes, pictures, probabilities=lambda rows: units(1, 4, seed=0)[rows], **options) == ()


def test_retrieval_intervals_draw_images_and_texts_follow_their_first_image():
    forth, back = [1, 3, 7], [2, 1, 12, 1, 4]
    pairs = Pairs(images=torch.tensor([0, 0, 1, 2, 2, 1]), texts=torch.tensor([0, 1, 1, 2, 3, 4]))
    owner = [0, 0, 2, 2, 1]
    bootstrap = Bootstrap(resamples=40)
    scores = retrieval_scores(
        Ranks(image_to_text=torch.tensor(forth), text_to_image=torch.tensor(back)), pairs=pairs, bootstrap=bootstrap
    )
    found = {s.key: s for s in scores}
    drawn = draws(bootstrap, 3)

    def check(key, number):
        value, *resampled = [
            number(
                [forth[i] for i in range(3) for _ in range(n[i])],
                [back[t] for t in range(5) for _ in range(n[owner[t]])],
            )
            for n in ([1, 1, 1], *drawn)
        ]
        score = found.pop(f"retrieval/{key}")
        assert score.value == pytest.approx(value)
        assert score.low == pytest.approx(quantile(resampled, 0.025))
        assert score.high == pytest.approx(quantile(resampled, 0.975))

    def share(ranks, k):
        return sum(r <= k for r in ranks) / len(ranks) if ranks else math.nan

    check("mean_recall", lambda i, t: sum(share(ranks, k) for ranks in (i, t) for k in (1, 5, 10)) / 6)
    for place, name in enumerate(("image_to_text", "text_to_image")):
        for k in (1, 5, 10):
            check(f"{name}/r{k}", lambda *both, k=k, place=place: share(both[place], k))
        check(f"{name}/mrr", lambda *both, place=place: sum(1 / r for r in both[place]) / len(both[place]))
        check(f"{name}/median_rank", lambda *both, place=place: median(both[place]))
    assert not found
    assert [s.n for s in scores] == [8, *[3] * 5, *[5] * 5]


def test_images_of_one_patient_are_not_taken_for_independent():
    values, bootstrap = torch.tensor([0.0, 1.0]).repeat_interleave(30), Bootstrap(resamples=200)
    patients = [f"p{k // 10}" for k in range(60)]
    (alone,), (of_patients,) = (
        measured(means(values[:, None]), samples=60, bootstrap=bootstrap, patients=each) for each in ((), patients)
    )
    assert alone[0] == of_patients[0] == 0.5
    assert of_patients[2] - of_patients[1] > 2 * (alone[2] - alone[1])
