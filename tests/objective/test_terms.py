import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import oracles
from unicl.errors import UserError
from unicl.objective.peers import share
from unicl.objective.terms import (
    ClassifySettings,
    ClassName,
    Contrast,
    ContrastSettings,
    Objective,
    ViewsSettings,
    find_loss,
)
from unicl.similarity.chosen import chosen
from unicl.similarity.scale import ScaleSettings
from unicl.space import Columns, Embedding, Keys, Parts, TextType

CAPTION, CLASS = int(TextType.CAPTION), int(TextType.CLASS)


def embedding(rows, *, seed, width=8):
    generator = torch.Generator().manual_seed(seed)
    whole = F.normalize(torch.randn(rows, width, dtype=torch.float64, generator=generator), dim=-1)
    return Embedding(whole=whole, features=whole)


def keys(entries, size):
    rows, own, types = torch.tensor(entries, dtype=torch.int64).reshape(-1, 3).unbind(1)
    return Keys(rows=rows, keys=own, types=types, weights=torch.ones(len(rows), dtype=torch.float64), size=size)


def columns(image_entries, images, text_entries, texts, counts=None):
    return Columns(
        images=embedding(images, seed=1),
        image_keys=keys(image_entries, images),
        texts=embedding(texts, seed=2),
        text_keys=keys(text_entries, texts),
        text_counts=torch.ones(texts, dtype=torch.float64) if counts is None else torch.tensor(counts).double(),
    )


def pairs(number):
    own = [(k, 100 + k, CAPTION) for k in range(number)]
    return columns(own, number, own, number)


class Alone:
    """A term on one process."""

    def __init__(self, term):
        self.term, self.scale = term, term.scale

    def __call__(self, batch):
        return self.term(share(batch))


def contrast(**settings):
    return Alone(Contrast(ContrastSettings(scale=ScaleSettings(init=7.0), **settings)).double())


def test_unique_keys_make_every_contrast_equal_clip():
    batch = pairs(6)
    scores = 7.0 * batch.images.whole @ batch.texts.whole.T
    assert math.isclose(contrast()(batch).item(), oracles.clip(scores.tolist()), rel_tol=1e-7)


def test_typed_rows_with_one_caption_and_no_label_equal_clip_in_value_and_gradient():
    batch = pairs(6)
    terms = [contrast(), contrast(texts="captions"), contrast(class_share=0.5, count_classes=False)]
    values, gradients = [], []
    for term in terms:
        whole = batch.images.whole.clone().requires_grad_()
        loss = term(replace(batch, images=Embedding(whole=whole, features=whole)))
        loss.backward()
        values.append(loss.item())
        gradients.append((whole.grad, term.scale.log_scale.grad))
    for value, (images, scale) in zip(values[1:], gradients[1:], strict=True):
        assert math.isclose(value, values[0], rel_tol=1e-12)
        assert torch.allclose(images, gradients[0][0], atol=1e-13)
        assert torch.allclose(scale, gradients[0][1], atol=1e-13)


def test_the_class_term_reads_the_prefix_and_leaves_unlabelled_images_out():
    images = [(0, 1, CAPTION), (0, 50, CLASS), (1, 2, CAPTION), (2, 51, CLASS)]
    texts = [(0, 1, CAPTION), (1, 2, CAPTION), (2, 50, CLASS), (3, 51, CLASS)]
    batch = columns(images, 3, texts, 4)
    u = F.normalize(batch.images.whole[[0, 2], :4], dim=-1)
    v = F.normalize(batch.texts.whole[2:, :4], dim=-1)
    wanted = oracles.clip((7.0 * u @ v.T).tolist())
    assert math.isclose(contrast(texts="classes", dims=4)(batch).item(), wanted, rel_tol=1e-7)


def test_the_caption_term_keeps_unpaired_images_and_leaves_label_only_images_out():
    images = [(0, 1, CAPTION), (1, 50, CLASS)]
    batch = columns(images, 3, [(0, 1, CAPTION), (1, 50, CLASS)], 2)
    scores = (7.0 * batch.images.whole[[0, 2]] @ batch.texts.whole[:1].T).tolist()
    wanted = oracles.unicl_algorithm_1(scores, [[1.0], [0.0]])
    assert math.isclose(contrast(texts="captions")(batch).item(), wanted, rel_tol=1e-7)


def test_class_share_splits_the_mass_of_an_image_between_its_caption_and_its_class():
    images = [(0, 1, CAPTION), (0, 50, CLASS), (1, 2, CAPTION), (1, 50, CLASS)]
    texts = [(0, 1, CAPTION), (1, 2, CAPTION), (2, 50, CLASS)]
    batch = columns(images, 2, texts, 3)
    scores = (7.0 * batch.images.whole @ batch.texts.whole.T).tolist()
    wanted = oracles.typed_rows(scores, [{1: 0.7, 50: 0.3}, {2: 0.7, 50: 0.3}], [1, 2, 50], [1, 1, 1])
    own = contrast(class_share=0.3, count_classes=False)(batch).item()
    assert math.isclose(own, wanted, rel_tol=1e-6)


def test_a_class_text_of_two_ranks_counts_once_where_classes_are_not_counted():
    images = [(0, 50, CLASS), (1, 50, CLASS), (2, 51, CLASS)]
    one = columns(images, 3, [(0, 50, CLASS), (1, 51, CLASS)], 2, counts=[2.0, 1.0])
    twice = torch.tensor([0, 0, 1])
    two = replace(
        one,
        texts=Embedding(whole=one.texts.whole[twice], features=one.texts.features[twice]),
        text_keys=keys([(0, 50, CLASS), (1, 50, CLASS), (2, 51, CLASS)], 3),
        text_counts=torch.ones(3, dtype=torch.float64),
    )
    term = contrast(texts="classes", count_classes=False)
    assert math.isclose(term(one).item(), term(two).item(), rel_tol=1e-12)
    counted = contrast(texts="classes")
    assert math.isclose(counted(one).item(), counted(two).item(), rel_tol=1e-12)
    assert not math.isclose(counted(one).item(), term(one).item(), rel_tol=1e-3)


def test_a_batch_that_has_nothing_for_a_term_gives_zero_with_a_graph():
    batch = columns([(0, 1, CAPTION)], 1, [(0, 1, CAPTION)], 1)
    whole = batch.images.whole.clone().requires_grad_()
    loss = contrast(texts="classes")(replace(batch, images=Embedding(whole=whole, features=whole)))
    loss.backward()
    assert loss.item() == 0
    assert whole.grad.abs().max() == 0


def test_cross_entropy_equals_torch_and_zero_is_a_class():
    classes = [ClassName(label=str(k), key=key) for k, key in enumerate([77, -5, 12])]
    objective = Objective([ClassifySettings()], features=8, classes=classes).double()
    batch = columns([(0, 77, CLASS), (1, -5, CLASS), (3, 12, CLASS)], 4, [], 0)
    head = objective.terms["classes"].head
    wanted = F.cross_entropy(head(batch.images.features[[0, 1, 3]]), torch.tensor([0, 1, 2]))
    assert math.isclose(objective(batch)[0].item(), wanted.item(), rel_tol=1e-12)


def test_cross_entropy_refuses_a_class_it_was_not_built_with():
    objective = Objective([ClassifySettings()], features=8, classes=[ClassName(label="a", key=1)]).double()
    with pytest.raises(UserError, match="was not built with"):
        objective(columns([(0, 2, CLASS)], 1, [], 0))


def test_supcon_takes_two_views_and_pairs_unlabelled_images_with_themselves():
    batch = columns([(0, 5, CLASS), (1, 5, CLASS)], 3, [], 0)
    other = embedding(3, seed=9)
    objective = Objective([ViewsSettings(scale=ScaleSettings(init=10.0))], features=8).double()
    views = torch.stack([batch.images.whole, other.whole], dim=1).tolist()
    wanted = oracles.supcon(views, [5, 5, -1], 0.1)
    assert math.isclose(objective(replace(batch, views=other))[0].item(), wanted, rel_tol=1e-6)
    with pytest.raises(UserError, match="two views"):
        objective(batch)


def test_an_objective_is_the_weighted_sum_of_its_terms_and_names_them():
    images = [(0, 1, CAPTION), (0, 50, CLASS), (1, 2, CAPTION), (1, 51, CLASS)]
    texts = [(0, 1, CAPTION), (1, 2, CAPTION), (2, 50, CLASS), (3, 51, CLASS)]
    settings = [
        ContrastSettings(texts="captions", weight=0.7),
        ContrastSettings(name="classes", texts="classes", weight=0.3, dims=4),
    ]
    total, parts = Objective(settings, features=8).double()(columns(images, 2, texts, 4))
    assert math.isclose(total.item(), 0.7 * parts["instances"] + 0.3 * parts["classes"], rel_tol=1e-12)


def test_two_terms_cannot_share_a_name():
    with pytest.raises(UserError, match="one name"):
        Objective([ContrastSettings(), ContrastSettings()], features=8)


def test_an_unknown_loss_suggests_a_near_one_and_a_file_gives_ones_own(tmp_path):
    with pytest.raises(UserError, match="did you mean 'softmax'"):
        find_loss("softmx")
    (tmp_path / "mine.py").write_text("def double(scores, target, **_):\n    return scores.sum() * 2\n")
    own = find_loss(f"{tmp_path / 'mine.py'}:double")
    assert own.keywords["loss"](torch.ones(2, 2), None).item() == 8
    with pytest.raises(UserError, match="has no function 'triple'"):
        find_loss(f"{tmp_path / 'mine.py'}:triple")
    with pytest.raises(UserError, match="no Python file"):
        find_loss("nothing.py:f")


def with_parts(rows, *, seed):
    generator = torch.Generator().manual_seed(seed)
    values = F.normalize(torch.randn(rows, 8, 6, dtype=torch.float64, generator=generator), dim=-1)
    parts = Parts(values=values, mask=torch.ones(rows, 8, dtype=torch.bool))
    return replace(embedding(rows, seed=seed), parts=parts)


def test_a_share_of_parts_is_compared_in_training_and_all_of_them_in_use():
    batch = replace(pairs(5), images=with_parts(5, seed=1), texts=with_parts(5, seed=2))
    some, every = (contrast(similarity="tokenwise", part_share=part) for part in (0.25, 1.0))
    images, texts = chosen(batch.images, batch.texts, share=0.25)
    wanted = every(replace(batch, images=images, texts=texts)).item()
    assert some.term.training
    assert math.isclose(some(batch).item(), wanted, rel_tol=1e-12)
    some.term.eval()
    assert math.isclose(some(batch).item(), every(batch).item(), rel_tol=1e-12)
    assert not math.isclose(some(batch).item(), wanted, rel_tol=1e-3)


def test_a_share_of_parts_must_be_one_and_needs_parts():
    for wrong in (0.0, -0.5, 1.5):
        with pytest.raises(UserError, match="above 0"):
            Contrast(ContrastSettings(similarity="tokenwise", part_share=wrong))
    with pytest.raises(UserError, match="no parts to choose from"):
        Contrast(ContrastSettings(part_share=0.25))


def test_the_scale_is_clamped_as_a_parameter():
    objective = Objective([ContrastSettings(scale=ScaleSettings(init=99.0))], features=8)
    scale = objective.scales()["instances"]
    with torch.no_grad():
        scale.log_scale += 1
    objective.clamp()
    assert math.isclose(scale.log_scale.exp().item(), 100.0, rel_tol=1e-5)
