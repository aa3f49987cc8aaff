import numpy as np
import pytest
import torch

from unicl.data.image import Augment, augment
from unicl.data.radiograph import CHEST, CONVIRT, Changes, radiograph


class Fixed:
    """A generator that draws the same share of every range."""

    def __init__(self, share):
        self.share = share

    def uniform(self, low, high):
        return low + self.share * (high - low)


def picture(side=41):
    """A bright square in the middle of gray."""
    pixels = torch.full((3, side, side), 100, dtype=torch.uint8)
    pixels[:, side // 4 : -(side // 4), side // 4 : -(side // 4)] = 180
    return pixels


def test_in_the_middle_of_every_range_only_the_blur_is_left():
    changed = radiograph(picture(), CONVIRT, rng=Fixed(0.5))
    assert changed.shape == (3, 41, 41)
    assert changed.dtype == torch.uint8
    assert (changed[:, 20, 20].int() - 180).abs().max() <= 1
    assert (changed[:, 0, 0].int() - 100).abs().max() <= 1


@pytest.mark.parametrize(("share", "lighter"), [(0.0, False), (1.0, True)])
def test_the_ends_of_the_ranges_are_darker_and_lighter(share, lighter):
    changed = radiograph(picture(), CONVIRT, rng=Fixed(share)).float().mean()
    assert bool(changed > picture().float().mean()) is lighter


def test_colours_of_a_gray_picture_stay_gray_and_equal_draws_give_equal_pixels():
    views = [radiograph(picture(), CONVIRT, rng=np.random.default_rng(3)) for _ in range(2)]
    assert torch.equal(*views)
    assert torch.equal(views[0][0], views[0][1])
    assert not torch.equal(views[0], radiograph(picture(), CONVIRT, rng=np.random.default_rng(4)))


def test_it_is_a_policy_of_training_and_takes_the_smallest_pictures():
    for policy in ("radiograph", "chest"):
        for size in (1, 8, 32):
            view = augment(picture(), Augment(policy=policy), size=size, rng=np.random.default_rng(0))
            assert view.shape == (3, size, size)


def test_the_ranges_are_convirts_and_medclips():
    assert Changes(turn=20.0, shift=0.1, zoom=(0.95, 1.05), light=(0.6, 1.4), blur=(0.1, 3.0)) == CONVIRT
    assert Changes(turn=10.0, shift=0.0625, zoom=(0.8, 1.1), light=(0.8, 1.2), blur=None) == CHEST
