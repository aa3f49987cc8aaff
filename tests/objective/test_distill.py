"""Learning from a teacher's vectors."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from unicl.errors import UserError
from unicl.objective.distill import DistillSettings
from unicl.objective.terms import Objective
from unicl.space import Columns, Embedding, Keys


def unit(rows, *, seed, width=8):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, dtype=torch.float64, generator=generator), dim=-1)


def columns(rows):
    whole, none = unit(rows, seed=1), Keys.empty(rows)
    images = Embedding(whole=whole, features=whole)
    return Columns(images=images, image_keys=none, texts=None, text_keys=Keys.empty(0), text_counts=torch.zeros(0))


def taught(batch, teacher):
    term = Objective([DistillSettings(teacher="somewhere")], features=8).double()
    return term(replace(batch, taught=teacher))[0]


def test_a_teacher_that_says_the_same_costs_nothing_and_one_that_says_the_opposite_costs_one():
    batch = columns(5)
    assert abs(float(taught(batch, batch.images.whole))) < 1e-15
    # Half of one minus a cosine of -1.
    assert float(taught(batch, -batch.images.whole)) == pytest.approx(1.0)


@pytest.mark.parametrize("width", [4, 8, 12])
def test_a_teacher_is_learned_from_by_half_of_one_minus_the_cosine(width):
    batch, teacher = columns(5), unit(5, seed=9, width=width)
    drawn = F.interpolate(batch.images.whole[None, None], size=(5, width), mode="bilinear", align_corners=False)[0, 0]
    wanted = 0.5 * (1 - F.cosine_similarity(drawn, teacher).mean())
    assert float(taught(batch, teacher)) == pytest.approx(float(wanted), rel=1e-12)


def test_a_term_without_its_teacher_says_so():
    with pytest.raises(UserError, match="has no teacher here"):
        Objective([DistillSettings(teacher="somewhere")], features=8).double()(columns(3))
