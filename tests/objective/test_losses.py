import math

import pytest
import torch
from torch.nn import functional as F

import oracles
from unicl.objective import losses
from unicl.objective.targets import affinity, paired, same_key
from unicl.space import Keys


def scores_of(rows, columns, *, seed=0, scale=5.0):
    return scale * torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(loss, scores):
    scores = scores.clone().requires_grad_()
    return torch.autograd.grad(loss(scores), scores)[0]


def same(labels, others):
    return (torch.tensor(labels)[:, None] == torch.tensor(others)).double()


def test_the_diagonal_makes_softmax_equal_clip_and_torch_cross_entropy():
    scores = scores_of(7, 7)
    loss = losses.softmax(scores, paired(7).dense())
    assert math.isclose(loss.item(), oracles.clip(scores.tolist()), rel_tol=1e-13)
    numbers = torch.arange(7)
    own = gradient(lambda s: losses.softmax(s, paired(7).dense()), scores)
    torchs = gradient(lambda s: (F.cross_entropy(s, numbers) + F.cross_entropy(s.T, numbers)) / 2, scores)
    assert torch.allclose(own, torchs, atol=1e-14)


def test_equal_labels_give_algorithm_1_and_a_half_batch_of_equation_1():
    labels = [0, 0, 1, 2, 2, 2]
    scores, target = scores_of(6, 6), same(labels, labels)
    loss = losses.softmax(scores, target).item()
    assert math.isclose(loss, oracles.unicl_algorithm_1(scores.tolist(), target.tolist()), rel_tol=1e-13)
    equation = oracles.unicl_equation_1(scores.tolist(), labels, labels)
    assert math.isclose(2 * 6 * loss, equation, rel_tol=1e-13)
    assert math.isclose(2 * losses.softmax(scores, target, reduction="sum").item(), equation, rel_tol=1e-13)


def test_rectangular_batches_with_rows_and_texts_that_match_nothing():
    images, texts = [0, 0, 1, 5], [1, 0, 7]
    scores, target = scores_of(4, 3), same(images, texts)
    wanted = oracles.unicl_algorithm_1(scores.tolist(), target.tolist())
    assert math.isclose(losses.softmax(scores, target).item(), wanted, rel_tol=1e-13)


def test_a_batch_without_any_positive_has_no_loss_and_no_gradient():
    scores = scores_of(3, 2)
    own = gradient(lambda s: losses.softmax(s, torch.zeros(3, 2)), scores)
    assert losses.softmax(scores, torch.zeros(3, 2)).item() == 0
    assert own.abs().max() == 0


def test_counts_equal_repeated_rows_in_value_and_gradient():
    images, texts, counts = [0, 0, 1, 2, 2], [0, 1, 2], [3, 1, 2]
    repeated = [j for j, n in enumerate(counts) for _ in range(n)]
    scores, target = scores_of(5, 3), same(images, texts)
    numbers = torch.tensor(counts, dtype=torch.float64)
    for options in ({}, {"image_weight": 0.75}, {"smoothing": 0.1}, {"reduction": "sum"}):
        own = losses.softmax(scores, target, counts=numbers, **options)
        wide = losses.softmax(scores[:, repeated], target[:, repeated], **options)
        assert math.isclose(own.item(), wide.item(), rel_tol=1e-13), options
        first = gradient(lambda s, o=options: losses.softmax(s, target, counts=numbers, **o), scores)
        second = gradient(lambda s, o=options: losses.softmax(s[:, repeated], target[:, repeated], **o), scores)
        assert torch.allclose(first, second, atol=1e-14), options


def test_sigmoid_counts_equal_repeated_rows():
    scores, target = scores_of(4, 3), same([0, 1, 1, 2], [0, 1, 2])
    repeated = [0, 1, 1, 1, 2]
    own = losses.sigmoid(scores, target, counts=torch.tensor([1.0, 3.0, 1.0]))
    assert math.isclose(own.item(), losses.sigmoid(scores[:, repeated], target[:, repeated]).item(), rel_tol=1e-13)


def test_keys_with_weights_and_counts_equal_the_loop_over_repeated_texts():
    image_keys = [{1: 0.5, 7: 0.5}, {1: 0.3}, {}, {2: 1.0, 9: 0.5}]
    text_keys, counts = [1, 2, 7, 8], [2, 1, 3, 1]
    entries = [(row, key, weight) for row, each in enumerate(image_keys) for key, weight in each.items()]
    rows, keys = (torch.tensor([e[k] for e in entries]) for k in (0, 1))
    weights = torch.tensor([e[2] for e in entries], dtype=torch.float64)
    images = Keys(rows=rows, keys=keys, types=torch.zeros_like(rows), weights=weights, size=4)
    target = same_key(images, Keys.single(torch.tensor(text_keys))).dense()
    scores = scores_of(4, 4)
    own = losses.softmax(scores, target, counts=torch.tensor(counts, dtype=torch.float64))
    wanted = oracles.typed_rows(scores.tolist(), image_keys, text_keys, counts)
    assert math.isclose(own.item(), wanted, rel_tol=1e-12)


def test_one_text_a_class_is_cross_entropy_with_the_log_of_the_counts():
    # Specification card 2.4, identity (ii): L_i2t = mean[CE(s + log n)_y + log n_y].
    labels, counts = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    scores = scores_of(6, 3)
    own = losses.softmax(scores, same(labels.tolist(), [0, 1, 2]), counts=counts, image_weight=1.0)
    wanted = F.cross_entropy(scores + counts.log(), labels) + counts.log()[labels].mean()
    assert math.isclose(own.item(), wanted.item(), rel_tol=1e-13)


def test_balanced_classes_give_cross_entropy_plus_log_n():
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    scores = scores_of(9, 3)
    counts = torch.full((3,), 3.0, dtype=torch.float64)
    own = losses.softmax(scores, same(labels.tolist(), [0, 1, 2]), counts=counts, image_weight=1.0)
    wanted = oracles.cross_entropy(scores.tolist(), labels.tolist()) + math.log(3)
    assert math.isclose(own.item(), wanted, rel_tol=1e-13)


def test_smoothing_is_the_mean_over_all_texts():
    scores, epsilon = scores_of(5, 5), 0.1
    own = losses.softmax(scores, paired(5).dense(), smoothing=epsilon)
    numbers = torch.arange(5)
    one, two = (F.cross_entropy(s, numbers, label_smoothing=epsilon) for s in (scores, scores.T))
    assert math.isclose(own.item(), ((one + two) / 2).item(), rel_tol=1e-13)


def test_the_direction_weight_is_convirts():
    scores, numbers = scores_of(5, 5), torch.arange(5)
    wanted = 0.75 * F.cross_entropy(scores, numbers) + 0.25 * F.cross_entropy(scores.T, numbers)
    assert math.isclose(
        losses.softmax(scores, paired(5).dense(), image_weight=0.75).item(), wanted.item(), rel_tol=1e-13
    )


def test_sigmoid_equals_the_loop_also_with_several_positives():
    scores, target = scores_of(4, 5), same([0, 1, 1, 2], [1, 0, 2, 2, 9])
    wanted = oracles.siglip(scores.tolist(), target.tolist())
    assert math.isclose(losses.sigmoid(scores, target).item(), wanted, rel_tol=1e-13)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_views_equal_supcon(number):
    generator = torch.Generator().manual_seed(number)
    views = F.normalize(torch.randn(5, number, 8, dtype=torch.float64, generator=generator), dim=-1)
    labels = [0, 1, 0, 2, 1]
    stacked = views.transpose(0, 1).reshape(-1, 8)
    target = same(labels, labels).repeat(number, number)
    own = losses.views(stacked @ stacked.T / 0.1, target)
    assert math.isclose(own.item(), oracles.supcon(views.tolist(), labels, 0.1), rel_tol=1e-12)


def test_mixed_labels_give_the_affinity_of_their_shares():
    mix = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.4, 0.0, 0.6]], dtype=torch.float64)
    rows, classes = mix.nonzero(as_tuple=True)
    keys = Keys(rows=rows, keys=classes + 11, types=torch.ones_like(rows), weights=mix[rows, classes], size=3)
    assert torch.allclose(same_key(keys, keys).dense(), affinity(mix, mix).dense())
    hard = F.one_hot(torch.tensor([2, 0, 2])).double()
    assert torch.equal(affinity(hard, hard).dense(), same([2, 0, 2], [2, 0, 2]))


def test_the_loss_does_not_care_about_the_order_of_the_batch():
    images, texts = [0, 0, 1, 3], [1, 0, 3, 3]
    scores, target = scores_of(4, 4), same(images, texts)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 3, 0, 2])
    moved = losses.softmax(scores[rows][:, columns], target[rows][:, columns])
    assert math.isclose(losses.softmax(scores, target).item(), moved.item(), rel_tol=1e-14)


def test_scores_of_a_hundred_and_minus_a_hundred_stay_finite_in_float32():
    scores = torch.tensor([[100.0, -100.0], [-100.0, 100.0]])
    own = gradient(lambda s: losses.softmax(s, paired(2).dense()), scores)
    assert losses.softmax(scores, paired(2).dense()).item() == 0
    assert own.isfinite().all()
    assert losses.sigmoid(scores, paired(2).dense()).isfinite()
