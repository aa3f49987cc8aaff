"""The chunk that the memory holds: measured, bounded, and found without a trace."""

import pytest
import torch

from cached_work import ALONE, cached, gradients, made, plain, statistics
from tiny import write_photos
from unicl.train.chunk import MARGIN, find_chunk
from unicl.train.compute import ComputeSettings
from unicl.train.memory import peak_bytes

NONE_KEPT = ComputeSettings(keep_mb=0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"), each=16)


def found(model, batch, *, free, **more):
    return find_chunk(model, batch, ranks=ALONE, precision="fp32", compute=NONE_KEPT, free=free, **more)


def needed(model, batch, chunk):
    """What a step takes at its peak, and the optimiser's two moments."""
    model.zero_grad(set_to_none=True)
    step = plain if chunk is None else lambda *args: cached(*args, chunk)
    moments = 2 * 4 * sum(p.numel() for p in model.parameters())
    return peak_bytes(lambda: step(model, batch), device=CPU) + moments


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_chunk_fits_and_the_next_larger_ones_would_not(checkpointing, data):
    model, batch = made("clip", data, batch=80, image={"checkpointing": checkpointing, "name": "vit_tiny_patch16_224"})
    model.float()
    small, large = (needed(model, batch, chunk) for chunk in (8, 40))
    free = int((small + (large - small) / 2) / MARGIN)
    chunk = found(model, batch, free=free).chunk
    assert chunk is not None
    assert chunk % 8 == 0
    assert needed(model, batch, chunk) <= free
    assert needed(model, batch, 2 * chunk) > MARGIN * free


def test_a_batch_that_fits_needs_no_chunks(data):
    model, batch = made("clip", data)
    all_of_it = found(model, batch, free=10**9)
    assert all_of_it.chunk is None
    assert needed(model, batch, None) < 10**9
    assert str(all_of_it).startswith("the batch of 13 fits at once: an image takes ")


def test_next_to_no_memory_gives_chunks_of_one_row(data):
    model, batch = made("clip", data)
    assert found(model, batch, free=1).chunk == 1


def test_a_chunk_is_never_larger_than_the_batch(data):
    model, batch = made("clip", data)
    both = needed(model, batch, None)
    chunks = [found(model, batch, free=int(both * share)).chunk for share in (0.6, 0.8, 1.0, 1.2, 1.4)]
    assert all(chunk is None or chunk <= 13 for chunk in chunks)
    sizes = [13 if chunk is None else chunk for chunk in chunks]
    assert sizes == sorted(sizes)


def test_what_is_kept_for_the_scores_is_not_planned_twice(data):
    model, batch = made("clip", data, batch=80)
    free = int((needed(model, batch, 40) + 50e6) / MARGIN)
    room = find_chunk(model, batch, ranks=ALONE, precision="fp32", compute=NONE_KEPT, free=free)
    kept = find_chunk(model, batch, ranks=ALONE, precision="fp32", compute=ComputeSettings(keep_mb=50), free=free)
    assert room.chunk is None
    assert kept.chunk is not None


@pytest.mark.parametrize("name", ["itl", "supcon"])
def test_measuring_leaves_no_trace(name, data):
    model, batch = made(name, data, tower="test_efficientnet", image={"drop_path": 0.2, "dropout": 0.1})
    plain(model, batch)
    kept = {n: p.grad for n, p in model.named_parameters()}
    values = {n: None if grad is None else grad.clone() for n, grad in kept.items()}
    weights, moved = {n: p.detach().clone() for n, p in model.named_parameters()}, statistics(model)
    random, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    found(model, batch, free=10**8)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert all(torch.equal(buffer, moved[n]) for n, buffer in model.named_buffers())
    for n, p in model.named_parameters():
        assert p.grad is kept[n]
        assert p.grad is None or torch.equal(p.grad, values[n])


def test_the_gradients_of_a_first_step_are_not_there_afterwards(data):
    model, batch = made("clip", data)
    found(model, batch, free=10**8)
    assert not gradients(model)


def test_the_system_says_how_much_is_free(data):
    model, batch = made("clip", data)
    asked = find_chunk(model, batch, ranks=ALONE, precision="fp32")
    assert asked.free > 10**7
    assert asked.image_bytes > 32 * 32 * 3
    assert asked.text_bytes > 0
