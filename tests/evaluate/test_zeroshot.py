import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate_oracles import all_cosines, class_accuracy, outcome, units
from unicl.evaluate.zeroshot import Truth, class_accuracies, classify, confusion, zero_shot


@st.composite
def scored(draw):
    """Scores with many ties, and one to three classes a sample."""
    classes, samples = draw(st.integers(2, 7)), draw(st.integers(1, 9))
    row = st.lists(st.integers(0, 4), min_size=classes, max_size=classes)
    scores = draw(st.lists(row, min_size=samples, max_size=samples))
    own = st.sets(st.integers(0, classes - 1), min_size=1, max_size=3)
    return scores, draw(st.lists(own, min_size=samples, max_size=samples))


@settings(max_examples=60, deadline=None)
@given(scored())
def test_outcomes_are_those_of_sorting_the_classes(case):
    scores, truth = case
    found = zero_shot(torch.tensor(scores, dtype=torch.float32), Truth.of(truth))
    wanted = [outcome(row, own) for row, own in zip(scores, truth, strict=True)]
    assert list(zip(found.predicted.tolist(), found.nearest.tolist(), found.ranks.tolist(), strict=True)) == wanted
    for row, (predicted, nearest, _), margin in zip(scores, wanted, found.margins.tolist(), strict=True):
        assert margin == row[predicted] - row[nearest]


@settings(max_examples=40, deadline=None)
@given(scored())
def test_accuracy_of_each_class_and_confusion_are_those_of_counting(case):
    scores, truth = case
    entries, classes = Truth.of(truth), len(scores[0])
    found = zero_shot(torch.tensor(scores, dtype=torch.float32), entries)
    accuracies = class_accuracies(found.hits(1), entries, classes=classes).tolist()
    for label in range(classes):
        wanted = class_accuracy(found.predicted.tolist(), truth, label)
        assert (
            accuracies[label] == pytest.approx(wanted) if wanted is not None else accuracies[label] != accuracies[label]
        )
    cells = {(t, p): n for t, p, n in confusion(found.nearest, found.predicted, classes=classes).tolist()}
    wanted_cells = {}
    for row, own in zip(scores, truth, strict=True):
        predicted, nearest, _ = outcome(row, own)
        wanted_cells[nearest, predicted] = wanted_cells.get((nearest, predicted), 0) + 1
    assert cells == wanted_cells


def test_a_prediction_is_right_if_it_is_one_of_several_labels():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    found = zero_shot(scores, Truth.of([{0, 1}, {0, 2}]))
    assert found.hits(1).tolist() == [1, 0]
    assert found.hits(2).tolist() == [1, 1]


def test_one_class_a_sample_may_be_given_as_a_tensor():
    scores = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(6, (20,), generator=torch.Generator().manual_seed(1))
    by_tensor, by_sets = (zero_shot(scores, Truth.of(t)) for t in (labels, [{k} for k in labels.tolist()]))
    assert torch.equal(by_tensor.ranks, by_sets.ranks)


def test_top_k_of_a_tensor_agrees_with_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

    scores = torch.rand(60, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(7, (60,), generator=torch.Generator().manual_seed(1))
    truth = Truth.of(labels)
    found = zero_shot(scores, truth)
    for k in (1, 3, 5):
        assert float(found.hits(k).mean()) == pytest.approx(top_k_accuracy_score(labels, scores, k=k, labels=range(7)))
    mean = float(class_accuracies(found.hits(1), truth, classes=7).nanmean())
    assert mean == pytest.approx(balanced_accuracy_score(labels, found.predicted))
    matrix = torch.zeros(7, 7, dtype=torch.int64)
    for true, predicted, count in confusion(found.nearest, found.predicted, classes=7).tolist():
        matrix[true, predicted] = count
    assert matrix.tolist() == confusion_matrix(labels, found.predicted).tolist()


def test_classes_with_equal_vectors_tie_and_the_first_is_predicted():
    images, classes = units(30, 16, seed=0), units(4, 16, seed=1)
    doubled = torch.cat([classes, classes])
    truth = Truth.of([{k % 8} for k in range(30)])
    found = classify(images, doubled, truth=truth)
    assert int(found.predicted.max()) < 4
    scores = all_cosines(images, doubled)
    assert found.ranks.tolist() == [outcome(row, {k % 8})[2] for k, row in enumerate(scores)]


@pytest.mark.parametrize("tile", [1, 7, 64])
def test_tiles_change_no_outcome(tile):
    images, classes = units(50, 24, seed=0), units(9, 24, seed=1)
    truth = Truth.of([{k % 9, (k * k) % 9} for k in range(50)])
    whole, parts = (classify(images, classes, truth=truth, tile=t) for t in (1000, tile))
    for name in ("predicted", "nearest", "ranks", "margins"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_taking_samples_keeps_their_classes_in_the_new_order():
    truth = Truth.of([{0, 3}, {1}, {2, 4}, {3}])
    taken = truth.take(torch.tensor([2, 0]))
    assert taken.size == 2
    assert taken.rows.tolist() == [0, 0, 1, 1]
    assert taken.classes.tolist() == [2, 4, 0, 3]


def test_containing_asks_each_sample_for_its_own_classes():
    truth = Truth.of([{0, 3}, {1}, {2, 4}])
    assert truth.contains(torch.tensor([3, 0, 4])).tolist() == [True, False, True]
