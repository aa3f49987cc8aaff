import math

import pytest
import torch

from unicl.objective import targets
from unicl.objective.targets import affinity, finding_target, paired, same_key, shared_findings, yes_or_no
from unicl.space import NO_KEY, Keys, TextType


def test_unique_keys_give_the_diagonal():
    keys = Keys.single(torch.tensor([5, -3, 2**62]))
    assert torch.equal(same_key(keys, keys).dense(), paired(3).dense())


def test_a_mixed_batch_has_blocks_of_classes_and_a_diagonal_of_captions():
    # UniCL, figure 2 right: two images of class 8, one of class 9, two captioned.
    keys = Keys.single(torch.tensor([8, 9, 8, 101, 102]))
    wanted = torch.eye(5)
    wanted[0, 2] = wanted[2, 0] = 1
    assert torch.equal(same_key(keys, keys).dense(), wanted)


def test_rows_without_a_key_match_nothing_not_even_each_other():
    keys = Keys.single(torch.tensor([NO_KEY, NO_KEY, 3]))
    assert same_key(keys, keys).dense().sum() == 1


def test_an_image_with_several_keys_matches_a_text_of_each():
    images = Keys(
        rows=torch.tensor([0, 0, 1]),
        keys=torch.tensor([1, 2, 2]),
        types=torch.tensor([0, 1, 1]),
        weights=torch.ones(3),
        size=2,
    )
    assert same_key(images, Keys.single(torch.tensor([1, 2, 3]))).dense().tolist() == [[1, 1, 0], [0, 1, 0]]


def test_empty_columns_give_empty_targets():
    assert same_key(Keys.empty(0), Keys.single(torch.tensor([1]))).dense().shape == (0, 1)
    assert same_key(Keys.single(torch.tensor([1])), Keys.empty(2)).dense().tolist() == [[0, 0]]


def test_renaming_the_classes_changes_nothing():
    keys = torch.tensor([4, 4, 7, 1])
    renamed = torch.tensor([-9, -9, 12, 99])
    assert torch.equal(same_key(*[Keys.single(keys)] * 2).dense(), same_key(*[Keys.single(renamed)] * 2).dense())


def test_a_part_of_a_target_is_that_part_of_the_table():
    keys = [Keys.single(torch.tensor(numbers)) for numbers in ([1, 2, 2, 3, 9], [2, 3, 1, 2])]
    findings = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0]]).float()
    for target in (same_key(*keys), shared_findings(findings, findings)):
        table = target.dense()
        assert torch.equal(target.part(slice(1, 3), slice(2, 4)).dense(), table[1:3, 2:4])
        assert torch.equal(target.turned().dense(), table.T)
        assert torch.equal(target.near(slice(2, 4)).dense(), table[2:4])
        values = torch.randn(table.shape[1], 3)
        assert torch.allclose(target.from_texts(values), table @ values, atol=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_shared_findings_give_medclips_softmax_of_similarities(similarity):
    # MedCLIP, section 3.3: y_ij = softmax over j of s_ij; the code takes the dot product, the paper the cosine.
    images = torch.tensor([[1, 0, -1], [1, 1, 0], [0, 0, 0], [1, 0, -1]]).double()
    texts = torch.tensor([[0, 1, 1], [1, 0, -1], [1, 0, -1]]).double()
    own = shared_findings(images, texts, similarity=similarity)
    assert len(own.kernel.images) == 3  # distinct label vectors
    assert len(own.kernel.texts) == 2
    table = own.dense() / own.dense().sum(1, keepdim=True)
    for i, image in enumerate(images.tolist()):
        scores = []
        for text in texts.tolist():
            dot = sum(a * b for a, b in zip(image, text))
            size = math.sqrt(sum(a * a for a in image)) * math.sqrt(sum(b * b for b in text))
            scores.append(dot if similarity == "dot" else dot / size if size else 0.0)
        wanted = [math.exp(s) / sum(math.exp(t) for t in scores) for s in scores]
        assert table[i].tolist() == pytest.approx(wanted, rel=1e-12)


def test_yes_or_no_counts_a_pair_once_however_many_keys_it_shares():
    mix = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [0.0, 0.0, 0.0]])
    assert torch.equal(yes_or_no(affinity(mix, mix)).dense(), (mix @ mix.T > 0).float())
    single = same_key(Keys.single(torch.tensor([1, 2])), Keys.single(torch.tensor([2, 2, 3])))
    assert torch.equal(yes_or_no(single).dense(), single.dense())


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_a_sharp_target_is_right_in_the_softmax_of_either_side_whatever_the_block(similarity, block, monkeypatch):
    monkeypatch.setattr(targets, "BLOCK", block)
    draw = torch.Generator().manual_seed(0)
    images, texts = ((torch.rand(rows, 9, generator=draw) < 0.4).float() for rows in (12, 10))
    images[0] = texts[0] = 1.0
    images[1] = 0.0
    own = shared_findings(images, texts, similarity=similarity, sharpness=200.0)
    sides = (images.double(), texts.double())
    first, second = (torch.nn.functional.normalize(s) for s in sides) if similarity == "cosine" else sides
    scores = 200.0 * first @ second.T
    by_image, by_text = own.dense(by="images"), own.dense(by="texts")
    assert torch.allclose(by_image / by_image.sum(1, keepdim=True), scores.softmax(1).float(), atol=2e-5)
    assert torch.allclose(by_text / by_text.sum(0), scores.softmax(0).float(), atol=2e-5)
    assert torch.allclose(own.turned().dense(by="texts"), by_image.T, rtol=1e-3)
    assert torch.allclose(own.near(slice(2, 5)).dense(by="images"), by_image[2:5], rtol=1e-3)


def test_findings_are_told_by_their_keys_whatever_the_order_of_a_table():
    def keys(rows, order):
        entries = [(row, key, value) for row, known in enumerate(rows) for key, value in known.items()]
        entries = [entries[place] for place in order(len(entries))]
        own, names, weights = (torch.tensor(each) for each in zip(*entries))
        types = torch.full_like(names, int(TextType.FINDING))
        return Keys(rows=own, keys=names, types=types, weights=weights, size=len(rows))

    seen = [{7: 1.0, 3: 1.0}, {5: 1.0}, {3: -1.0, 9: 1.0}]
    said = [{3: 1.0}, {9: 1.0, 5: 1.0}]
    one = finding_target(keys(seen, range), keys(said, range)).dense()
    other = finding_target(keys(seen, lambda n: range(n)[::-1]), keys(said, lambda n: [*range(1, n), 0])).dense()
    assert torch.equal(one, other)
    alone = finding_target(keys(seen[:1], range), keys(said[:1], range))
    assert alone.dense().tolist() == [[1.0]]
