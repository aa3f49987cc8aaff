import io

import numpy as np
import pytest
import torch
from PIL import Image

from unicl.data.check.duplicates import Fingerprint, NearPairs, fingerprint, groups, near_pairs, same_value


def mark(picture: Image.Image) -> Fingerprint:
    return fingerprint(torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def pairs(marks: list[Fingerprint], *, budget: int = 10**9) -> NearPairs:
    hashes = np.array([m.hash for m in marks], dtype=np.uint64)
    grids = np.stack([np.frombuffer(m.grid, dtype=np.uint8) for m in marks])
    return near_pairs(hashes, grids, budget=budget)


def saved(picture: Image.Image, *, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def scaled(picture: Image.Image, factor: float) -> Image.Image:
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC)


CHANGES = {
    "saved at quality 50": lambda p: saved(p, quality=50),
    "half as large": lambda p: scaled(p, 0.5),
    "larger": lambda p: scaled(p, 1.5),
    "smaller and saved at quality 75": lambda p: saved(scaled(p, 0.7), quality=75),
    "a tenth brighter": lambda p: Image.eval(p, lambda v: min(255, int(v * 1.1))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_of_a_photograph_is_found(change: str, photos: list[Image.Image]) -> None:
    plain = [mark(p).plain for p in photos]
    kept = [p for p, is_plain in zip(photos, plain, strict=True) if not is_plain]
    found = {tuple(pair) for pair in pairs([mark(p) for p in kept] + [mark(CHANGES[change](p)) for p in kept]).pairs}
    hits = sum((k, k + len(kept)) in found for k in range(len(kept)))
    assert hits >= 0.9 * len(kept)
    assert all(b - a == len(kept) for a, b in found), "two different photographs were called alike"


@pytest.mark.parametrize("change", [c for c in CHANGES if c != "a tenth brighter"])
def test_a_changed_copy_of_a_drawing_is_found(change: str, drawings: list[Image.Image]) -> None:
    some = [p for p in drawings[::10] if not mark(p).plain]
    found = {tuple(pair) for pair in pairs([mark(p) for p in some] + [mark(CHANGES[change](p)) for p in some]).pairs}
    assert sum((k, k + len(some)) in found for k in range(len(some))) >= 0.95 * len(some)


def test_different_drawings_are_rarely_called_alike(drawings: list[Image.Image]) -> None:
    different = list({p.tobytes(): p for p in drawings}.values())
    marks = [m for m in map(mark, different) if not m.plain]
    # Half a million pairs, clock faces and hearts among them.
    assert len(pairs(marks).pairs) <= 5


def test_different_digits_are_not_called_alike(digits: list[Image.Image]) -> None:
    assert len(pairs([mark(p) for p in digits]).pairs) == 0


def test_one_colour_shows_nothing_and_a_photograph_does(photos: list[Image.Image]) -> None:
    assert mark(Image.new("RGB", (90, 60), "teal")).plain
    assert sum(mark(p).plain for p in photos) <= 3


def crowd(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Hashes with many close ones: few bits are free, the others fixed; grids that all agree."""
    bits = np.zeros((size, 64), dtype=np.uint8)
    bits[:, rng.permutation(64)[:16]] = rng.integers(0, 2, (size, 16))
    hashes = np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)
    return hashes, np.tile(np.linspace(0, 255, 432).astype(np.uint8), (size, 1))


def test_bands_find_what_comparing_all_with_all_finds() -> None:
    hashes, grids = crowd(500, np.random.default_rng(0))
    distance = np.array([[int(a ^ b).bit_count() for b in hashes.tolist()] for a in hashes.tolist()])
    near = near_pairs(hashes, grids)
    wanted = np.argwhere(np.triu(distance <= 7, 1))
    assert near.exact_to == 7
    assert np.array_equal(near.pairs, wanted)


def test_too_many_alike_are_searched_less_and_that_is_said() -> None:
    hashes, grids = crowd(500, np.random.default_rng(0))
    full, less, least = (near_pairs(hashes, grids, budget=b) for b in (10**9, 150_000, 10**4))
    assert (full.exact_to, less.exact_to, least.exact_to) == (7, 3, 0)
    distance = [int(hashes[a] ^ hashes[b]).bit_count() for a, b in full.pairs]
    close = {tuple(pair) for pair, d in zip(full.pairs.tolist(), distance, strict=True) if d <= 3}
    assert close <= {tuple(pair) for pair in less.pairs.tolist()}
    assert {tuple(p) for p in least.pairs.tolist()} <= {tuple(p) for p in full.pairs.tolist()}


def test_groups_join_chains() -> None:
    assert groups(np.array([[4, 7], [0, 2], [2, 5]]), size=9) == [[0, 2, 5], [4, 7]]
    assert groups(np.zeros((0, 2), dtype=np.int64), size=9) == []


def test_same_value_leaves_out_what_occurs_once() -> None:
    assert same_value(np.array([b"a", b"b", b"a", b"c", b"b", b"a"])) == [[0, 2, 5], [1, 4]]
    assert same_value(np.zeros(0)) == []
