import math

import pytest
import torch
from torch.nn import functional as F

import oracles
from unicl.errors import UserError
from unicl.objective.classify import Classify, ClassifySettings, ClassName
from unicl.objective.peers import share
from unicl.space import Columns, Embedding, Keys, TextType

CLASSES = tuple(ClassName(label=str(k), key=key) for k, key in enumerate((77, -5, 12)))
SIGMOID = ClassifySettings(loss="sigmoid")
FINDINGS = ClassifySettings(loss="sigmoid", of="findings")


def keys(entries, size, *, type=TextType.CLASS):
    """From (row, number of the class, weight)."""
    rows = torch.tensor([row for row, _, _ in entries], dtype=torch.int64)
    named = torch.tensor([CLASSES[number].key for _, number, _ in entries], dtype=torch.int64)
    weights = torch.tensor([weight for _, _, weight in entries])
    return Keys(rows=rows, keys=named, types=torch.full_like(rows, int(type)), weights=weights, size=size)


def columns(entries, size=5, *, type=TextType.CLASS):
    features, whole = torch.randn(2, size, 6, generator=torch.Generator().manual_seed(0)).double()
    return Columns(
        images=Embedding(whole=F.normalize(whole, dim=1), features=features.requires_grad_()),
        image_keys=keys(entries, size, type=type),
        texts=None,
        text_keys=Keys.empty(0),
        text_counts=torch.zeros(0).double(),
    )


def term(settings=SIGMOID, **more):
    torch.manual_seed(0)
    return Classify(settings, features=6, classes=CLASSES, **more).double()


def test_several_labels_are_asked_one_by_one():
    batch, layer = columns([(0, 0, 1.0), (0, 2, 1.0), (2, 1, 1.0)]), term()
    wanted = torch.tensor([[1.0, 0, 1], [0, 1, 0]]).double()
    logits = layer.head(batch.images.features[[0, 2]])
    expected = F.binary_cross_entropy_with_logits(logits, wanted)
    assert math.isclose(layer(share(batch)).item(), expected.item(), rel_tol=1e-12)


@pytest.mark.parametrize("unmentioned", ["absent", "ignored"])
def test_findings_equal_plain_loops_in_value_and_gradient(unmentioned):
    values = [[1.0, -1.0, 0.0], [0.5, 1.0, -1.0], [0.0, 0.0, -1.0], [-1.0, 0.5, 1.0]]
    entries = [(row, c, v) for row, each in enumerate(values) for c, v in enumerate(each) if v]
    batch = columns(entries, type=TextType.FINDING)
    layer = term(ClassifySettings(loss="sigmoid", of="findings", unmentioned=unmentioned))

    def oracle(weight):
        scores = batch.images.features.detach()[:4] @ weight.T + layer.head.bias.detach()
        return oracles.asked_findings(scores.tolist(), values, unmentioned=unmentioned)

    loss = layer(share(batch))
    assert math.isclose(loss.item(), oracle(layer.head.weight.detach()), rel_tol=1e-12)
    loss.backward()
    for place in [(0, 0), (1, 3), (2, 5)]:
        step = torch.zeros_like(layer.head.weight)
        step[place] = 1e-6
        slope = (oracle(layer.head.weight.detach() + step) - oracle(layer.head.weight.detach() - step)) / 2e-6
        assert math.isclose(layer.head.weight.grad[place].item(), slope, rel_tol=1e-6, abs_tol=1e-9)
    # The fifth image has no findings, of which nothing is known.
    assert batch.images.features.grad[4].abs().max() == 0


def test_an_image_with_a_table_of_blanks_is_known_to_have_none_of_them():
    batch = columns([(1, 0, 0.0)], type=TextType.FINDING)
    layer = term(FINDINGS)
    wanted = F.softplus(layer.head(batch.images.features[1])).mean()
    assert math.isclose(layer(share(batch)).item(), wanted.item(), rel_tol=1e-12)


def test_labels_are_nothing_to_a_layer_of_findings():
    batch, layer = columns([(0, 0, 1.0)]), term(FINDINGS)
    assert layer(share(batch)).item() == 0
    with pytest.raises(UserError, match="loss=sigmoid"):
        term(ClassifySettings(of="findings"))


def test_smoothing_of_a_sigmoid_draws_yes_and_no_to_the_middle():
    batch = columns([(0, 0, 1.0)])
    sharp, smooth = term(), term(ClassifySettings(loss="sigmoid", smoothing=0.2))
    logits = sharp.head(batch.images.features[:1])
    wanted = F.binary_cross_entropy_with_logits(logits, torch.tensor([[0.9, 0.1, 0.1]], dtype=torch.float64))
    assert math.isclose(smooth(share(batch)).item(), wanted.item(), rel_tol=1e-12)


def test_whole_vectors_are_read_in_part_and_at_unit_length():
    batch = columns([(0, 0, 1.0), (1, 1, 1.0)])
    layer = term(ClassifySettings(reads="whole", dims=4), width=6)
    seen = layer.seen(batch.images)
    assert seen.shape == (5, 4)
    assert torch.allclose(seen.norm(dim=1), torch.ones(5).double())
    wanted = F.cross_entropy(layer.head(seen[:2]), torch.tensor([0, 1]))
    assert math.isclose(layer(share(batch)).item(), wanted.item(), rel_tol=1e-12)
    with pytest.raises(UserError, match="give dims"):
        term(ClassifySettings(reads="whole"))


def test_a_layer_without_classes_says_what_the_data_lacks():
    for settings, lacking in ((ClassifySettings(), "needs labels"), (FINDINGS, r"needs findings.*findings=\*")):
        with pytest.raises(UserError, match=lacking):
            Classify(settings, features=6, classes=())
