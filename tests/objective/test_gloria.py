"""GLoRIA's loss from the terms of its recipe."""

import math

import pytest
import torch
from torch.nn import functional as F

import oracles
from unicl.lookup import find
from unicl.objective.plan import Tiling
from unicl.objective.terms import Objective
from unicl.space import Columns, Embedding, Keys, Parts

IMAGES, PLACES, WORDS, WIDTH = 5, 4, 6, 8


def column(parts, lengths, *, seed):
    rng = torch.Generator().manual_seed(seed)
    whole = F.normalize(torch.randn(IMAGES, WIDTH, generator=rng).double(), dim=1)
    values = torch.randn(IMAGES, parts, WIDTH, generator=rng).double()
    mask = torch.arange(parts) < torch.tensor(lengths)[:, None]
    return Embedding(whole=whole, features=whole, parts=Parts(values=values.requires_grad_(), mask=mask))


def pairs():
    keys = Keys.single(100 + torch.arange(IMAGES))
    images = column(PLACES, [PLACES] * IMAGES, seed=1)
    texts = column(WORDS, [1, 6, 3, 2, 6], seed=2)
    counts = torch.ones(IMAGES, dtype=torch.float64)
    return Columns(images=images, image_keys=keys, texts=texts, text_keys=keys, text_counts=counts)


def wanted(batch):
    whole = (batch.images.whole @ batch.texts.whole.T).tolist()
    words = [v[m].tolist() for v, m in zip(batch.texts.parts.values, batch.texts.parts.mask, strict=True)]
    local = [[oracles.attended_regions(c, e) for e in words] for c in batch.images.parts.values.tolist()]
    return oracles.gloria(local, whole), local, whole


@pytest.mark.parametrize("tiling", [Tiling(), Tiling(rows=2)])
def test_the_terms_of_the_recipe_are_glorias_local_and_global_losses_added_up(tiling):
    batch = pairs()
    loss, parts = Objective(find("gloria")().terms, features=WIDTH).double()(batch, tiling=tiling)
    total, local, whole = wanted(batch)
    assert math.isclose(loss.item(), total, rel_tol=1e-7)
    assert math.isclose(2 * parts["local"].item(), oracles.gloria(local, [[0.0]]), rel_tol=1e-7)
    assert math.isclose(2 * parts["global"].item(), oracles.gloria([[0.0]], whole), rel_tol=1e-7)


def test_temp3_is_ten_and_learns_nothing():
    objective = Objective(find("gloria")().terms, features=WIDTH)
    assert all(math.isclose(scale.value, 10, rel_tol=1e-6) for scale in objective.scales().values())
    assert not any(parameter.requires_grad for parameter in objective.parameters())
