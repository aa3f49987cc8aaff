import pytest
import torch

from evaluate_oracles import all_cosines, class_accuracy, median, outcome, pessimistic_rank, units
from unicl.errors import UserError
from unicl.evaluate.quick import metrics_from_embeddings
from unicl.evaluate.retrieval import Pairs
from unicl.evaluate.zeroshot import Truth


def test_class_numbers_are_those_of_counting():
    images, classes = units(40, 12, seed=0), units(8, 12, seed=1)
    truth = [{k % 7} for k in range(40)]
    found = metrics_from_embeddings(class_view=(images, classes, Truth.of(truth)))
    outcomes = [outcome(row, own) for row, own in zip(all_cosines(images, classes), truth, strict=True)]
    ranks, predicted = [o[2] for o in outcomes], [o[0] for o in outcomes]
    of_classes = [class_accuracy(predicted, truth, label) for label in range(7)]
    assert found == {
        "zeroshot/top1": pytest.approx(sum(r == 1 for r in ranks) / 40),
        "zeroshot/top5": pytest.approx(sum(r <= 5 for r in ranks) / 40),
        "zeroshot/mean_per_class": pytest.approx(sum(of_classes) / 7),
    }


def test_retrieval_numbers_are_those_of_counting():
    images, texts = units(20, 12, seed=2), units(40, 12, seed=3)
    pairs = Pairs(images=torch.arange(40) % 20, texts=torch.arange(40))
    found = metrics_from_embeddings(instance_view=(images, texts, pairs))
    scores = all_cosines(images, texts)
    forth = [pessimistic_rank(scores[i], {i, i + 20}) for i in range(20)]
    back = [pessimistic_rank([row[t] for row in scores], {t % 20}) for t in range(40)]
    recalls = []
    for name, ranks in (("image_to_text", forth), ("text_to_image", back)):
        for k in (1, 5, 10):
            recalls.append(sum(r <= k for r in ranks) / len(ranks))
            assert found.pop(f"retrieval/{name}/r{k}") == pytest.approx(recalls[-1])
        assert found.pop(f"retrieval/{name}/mrr") == pytest.approx(sum(1 / r for r in ranks) / len(ranks))
        assert found.pop(f"retrieval/{name}/median_rank") == median(ranks)
    assert found == {"retrieval/mean_recall": pytest.approx(sum(recalls) / 6)}


def test_both_views_give_all_numbers_and_none_gives_none():
    images = units(4, 6, seed=0)
    pairs = Pairs(images=torch.arange(4), texts=torch.arange(4))
    both = metrics_from_embeddings(
        class_view=(images, images, Truth.of(torch.arange(4))), instance_view=(images, images, pairs)
    )
    assert both["zeroshot/top1"] == both["retrieval/mean_recall"] == 1
    assert metrics_from_embeddings() == {}


def test_vectors_that_diverged_are_an_error():
    images = units(4, 6, seed=0)
    images[2] = torch.inf
    with pytest.raises(UserError, match="1 of 4 image embeddings are not finite"):
        metrics_from_embeddings(class_view=(images, units(2, 6, seed=1), Truth.of([{0}] * 4)))
