import numpy as np
import torch

from unicl.data.collate import Drawn
from unicl.data.mix import Mix, mix
from unicl.space import Sample


def drawn(value, *, size=8):
    image = None if value is None else torch.full((3, size, size), value, dtype=torch.uint8)
    return Drawn(sample=Sample(id=str(value)), source="s", caption=None, image=image)


def test_mixup_blends_neighbours_by_their_share():
    first, second = mix([drawn(0), drawn(200)], Mix(mixup=0.8), rng=np.random.default_rng(3))
    assert first.partner.sample.id == "200"
    assert first.image.unique().tolist() == [round(200 * (1 - first.share))]
    assert second.image.unique().tolist() == [round(200 * second.share)]


def test_cutmix_shares_are_the_areas_that_are_left():
    for seed in range(10):
        first, _ = mix([drawn(0), drawn(200)], Mix(cutmix=1.0), rng=np.random.default_rng(seed))
        assert np.isclose(first.share, (first.image[0] == 0).float().mean().item())


def test_a_sample_without_a_neighbour_or_an_image_stays():
    for row in ([drawn(1)], [drawn(1), None], [drawn(1), drawn(None)]):
        assert mix(row, Mix(mixup=1.0), rng=np.random.default_rng(0))[0].partner is None


def test_strengths_of_zero_mix_nothing():
    assert mix([drawn(1), drawn(2)], Mix(), rng=np.random.default_rng(0))[0].partner is None
