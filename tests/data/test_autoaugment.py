from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import AutoAugment, InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from unicl.data.autoaugment import autoaugment


def photo(seed=0, height=37, width=52):
    """Smooth colours, so that changes of place and of colour show."""
    rng = np.random.default_rng(seed)
    low = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return torch.from_numpy(np.array(low.resize((width, height), Image.Resampling.BICUBIC))).permute(2, 0, 1)


class Fixed:
    """A generator whose draws are known: the pair, then the chance and the sign of each change."""

    def __init__(self, pair, draws):
        self.pair, self.draws = pair, iter(draws)

    def integers(self, _):
        return self.pair

    def random(self):
        return next(self.draws)


def theirs(image, pair, applied, signs):
    policy = AutoAugment()
    space = policy._augmentation_space(10, tuple(image.shape[1:]))
    changed = Image.fromarray(image.permute(1, 2, 0).numpy())
    for (name, _, level), taken, positive in zip(policy.policies[pair], applied, signs, strict=True):
        strengths, signed = space[name]
        strength = 0.0 if level is None else float(strengths[level]) * (1 if positive or not signed else -1)
        if taken:
            changed = _apply_op(changed, name, strength, interpolation=InterpolationMode.NEAREST, fill=None)
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


@pytest.mark.parametrize("pair", range(25))
def test_every_pair_of_changes_is_torchvisions_to_one_grey_level(pair):
    image = photo(pair)
    chances = [chance for _, chance, _ in AutoAugment().policies[pair]]
    for signs in ((True, False), (False, True)):
        for applied in ((True, True), (True, False), (False, True), (False, False)):
            draws = []
            for chance, taken, positive in zip(chances, applied, signs, strict=True):
                draws += [np.nextafter(chance, 0) if taken else chance, 0.7 if positive else 0.2]
            # A chance of 1 or 0 is no chance.
            real = [(taken or chance == 1) and chance > 0 for taken, chance in zip(applied, chances, strict=True)]
            draws[::2] = [min(d, np.nextafter(1.0, 0)) for d in draws[::2]]
            ours = autoaugment(image, rng=Fixed(pair, draws))
            # Its table of strengths is in float32.
            assert (ours.int() - theirs(image, pair, real, signs).int()).abs().max() <= 1


def test_views_depend_on_the_generator_alone_in_any_thread():
    image = photo()

    def view(seed):
        torch.manual_seed(seed + 1000)
        return autoaugment(image, rng=np.random.default_rng(seed))

    straight = [view(seed) for seed in range(40)]
    before = torch.get_rng_state()
    autoaugment(image, rng=np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), before)
    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(a, b) for a, b in zip(straight, threads.map(view, range(40)), strict=True))
    assert len({tuple(v.flatten().tolist()) for v in straight}) > 10


def test_pairs_are_drawn_evenly():
    image = photo(height=8, width=8)
    drawn = np.zeros(25)

    class Counting(np.random.Generator):
        def integers(self, high):
            number = super().integers(high)
            drawn[number] += 1
            return number

    rng = Counting(np.random.PCG64(0))
    for _ in range(2500):
        autoaugment(image, rng=rng)
    assert drawn.min() > 60
    assert drawn.max() < 140
