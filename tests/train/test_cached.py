"""The cached step: every recipe, chunks of any size, with all that is random and all that moves."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from cached_work import (
    CHUNKED,
    LOCKED,
    cached,
    cut,
    gradients,
    made,
    plain,
    ranks_work,
    same,
    statistics,
    uncached,
)
from forks import run_forks
from rank_work import free_port
from tiny import write_photos
from unicl.errors import UserError
from unicl.lookup import names
from unicl.train.compute import ComputeSettings

RECIPES = names()
RANDOM = {"image": {"dropout": 0.1, "drop_path": 0.3, "patch_drop": 0.25}, "text": {"dropout": 0.2}}
SAVING = {
    "image": {**RANDOM["image"], "checkpointing": True},
    "text": {**RANDOM["text"], "checkpointing": True, "layers": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"), findings=True)


def rows_seen(tower):
    """How many rows each call of a module was given."""
    seen = []
    tower.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    return seen


@pytest.mark.parametrize("name", RECIPES)
def test_any_chunk_gives_the_plain_loss_and_every_gradient(name, data):
    model, batch = made(name, data)
    wanted = plain(model, batch)
    exact = gradients(model)
    learns = any(parameter.requires_grad for parameter in model.image.parameters())
    assert learns == any(name.startswith("image.") and grad.abs().sum() > 0 for name, grad in exact.items())
    for chunk in (1, 3, 5, 99):
        found = cached(model, batch, chunk)
        torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-12, atol=0)
        assert found.parts.keys() == wanted.parts.keys()
        same(gradients(model), exact)


@pytest.mark.parametrize("name", RECIPES)
def test_both_passes_drop_the_same(name, data):
    model, batch = made(name, data, **RANDOM)
    torch.manual_seed(5)
    wanted = uncached(model, batch, 5)
    exact, after = gradients(model), torch.rand(3)
    torch.manual_seed(5)
    found = cached(model, batch, 5)
    torch.testing.assert_close(found.loss, wanted, rtol=1e-12, atol=0)
    same(gradients(model), exact)
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(6)
    assert cached(model, batch, 5).loss != found.loss


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_scale_learns_once_and_not_once_a_chunk(chunk, data):
    model, batch = made("siglip", data)
    scale = model.objective.scales()["instances"]
    plain(model, batch)
    wanted = (scale.log_scale.grad.clone(), scale.bias.grad.clone())
    model.zero_grad(set_to_none=True)
    cached(model, batch, chunk)
    assert wanted[0] != 0
    torch.testing.assert_close((scale.log_scale.grad, scale.bias.grad), wanted, rtol=1e-10, atol=0)


def test_a_gradient_adds_to_what_is_there(data):
    model, batch = made("clip", data)
    cached(model, batch, 4)
    once = gradients(model)
    cached(model, batch, 4)
    cached(model, batch, 5)
    same(gradients(model), {name: 2 * grad for name, grad in once.items()})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_batch_statistics_move_once_chunk_by_chunk(checkpointing, data):
    arguments = {"tower": "test_efficientnet", "image": {"drop_path": 0.2}}
    model, batch = made("itl", data, **arguments)
    torch.manual_seed(1)
    wanted = uncached(model, batch, 4)
    exact, moved = gradients(model), statistics(model)
    model, _ = made("itl", data, **{**arguments, "image": {"drop_path": 0.2, "checkpointing": checkpointing}})
    before = statistics(model)
    torch.manual_seed(1)
    found = cached(model, batch, 4)
    torch.testing.assert_close(found.loss, wanted, rtol=1e-12, atol=0)
    same(gradients(model), exact, rtol=1e-7, atol=1e-10)
    same(statistics(model), moved)
    counted = [name for name in moved if name.endswith("num_batches_tracked")]
    assert counted
    assert all(moved[name] == 4 for name in counted)  # 13 images in chunks of 4 at most
    assert any((moved[name] - before[name]).abs().sum() > 0 for name in moved if name.endswith("running_var"))


def test_a_second_view_moves_the_statistics_as_well(data):
    model, batch = made("supcon", data, tower="test_efficientnet")
    uncached(model, batch, 5)
    moved = statistics(model)
    model, _ = made("supcon", data, tower="test_efficientnet")
    cached(model, batch, 5)
    same(statistics(model), moved)


@pytest.mark.parametrize("name", ["clip", "supcon"])
def test_towers_that_compute_their_blocks_again_give_the_same(name, data):
    model, batch = made(name, data, **{**RANDOM, "text": {**RANDOM["text"], "layers": 2}})
    torch.manual_seed(2)
    wanted = uncached(model, batch, 4)
    exact = gradients(model)
    model, _ = made(name, data, **SAVING)
    torch.manual_seed(2)
    torch.testing.assert_close(cached(model, batch, 4).loss, wanted, rtol=1e-12, atol=0)
    same(gradients(model), exact)


def test_bfloat16_towers_stay_close_to_the_plain_step(data):
    model, batch = made("clip", data)
    model.float()
    plain_loss = plain(model, batch, precision="bf16").loss
    exact = gradients(model)
    loss = cached(model, batch, 4, precision="bf16").loss
    torch.testing.assert_close(loss, plain_loss, rtol=1e-2, atol=0)
    found = gradients(model)
    wanted, close = (torch.cat([each[name].flatten() for name in exact]) for each in (exact, found))
    assert 0 < (close - wanted).norm() <= 0.05 * wanted.norm()


@pytest.mark.parametrize("name", ["clip", "cross_entropy"])
def test_a_locked_image_tower_sees_each_image_once(name, data):
    model, batch = made(name, data, image={"locked": True, "dropout": 0.3, "head": "linear"})
    torch.manual_seed(4)
    uncached(model, batch, 4)
    exact = gradients(model)
    seen = rows_seen(model.image.backbone)
    torch.manual_seed(4)
    cached(model, batch, 4)
    same(gradients(model), exact)
    assert sum(shape[0] for shape in seen) == len(batch.images)


def test_a_locked_tower_with_parts_sees_each_image_once_too(data):
    model, batch = made("wukong", data, image={"dropout": 0.3})
    torch.manual_seed(4)
    uncached(model, batch, 4)
    exact = gradients(model)
    assert any(name.startswith("image.parts.") for name in exact)
    seen = rows_seen(model.image.backbone.patch_embed)
    torch.manual_seed(4)
    cached(model, batch, 4)
    same(gradients(model), exact)
    assert sum(shape[0] for shape in seen) == len(batch.images)


def test_chunks_of_texts_keep_their_own_number_of_parts(data):
    model, batch = made("filip", data)
    wanted = plain(model, batch).loss
    exact = gradients(model)
    widths = []
    model.text.register_forward_hook(lambda _, __, output: widths.append(output.parts.mask.shape[1]))
    torch.testing.assert_close(cached(model, batch, 1).loss, wanted, rtol=1e-12, atol=0)
    same(gradients(model), exact)
    assert len(set(widths)) > 1


@pytest.mark.parametrize("chunk", [1, 5])
def test_the_parts_that_are_compared_are_chosen_from_the_whole_batch(chunk, data):
    model, batch = made("filip", data)
    everything = plain(model, batch).loss
    model.zero_grad(set_to_none=True)
    term = model.objective.terms["instances"]
    term.settings = replace(term.settings, part_share=0.25)
    wanted = plain(model, batch).loss
    exact = gradients(model)
    torch.testing.assert_close(cached(model, batch, chunk).loss, wanted, rtol=1e-12, atol=0)
    same(gradients(model), exact)
    assert not torch.isclose(wanted, everything, rtol=1e-3)


def test_a_locked_text_tower_still_trains_its_head(data):
    model, batch = made("clip", data, text={"locked": True})
    wanted = plain(model, batch).loss
    exact = gradients(model)
    assert "text.head.weight" in exact
    torch.testing.assert_close(cached(model, batch, 4).loss, wanted, rtol=1e-12, atol=0)
    same(gradients(model), exact)


def test_towers_without_anything_to_learn_leave_the_objective_alone_to_learn(data):
    model, batch = made("clip", data)
    for tower in (model.image, model.text):
        tower.requires_grad_(False)
    plain(model, batch)
    exact = gradients(model)
    cached(model, batch, 4)
    assert list(exact) == ["objective.terms.instances.scale.log_scale"]
    same(gradients(model), exact)


def test_kept_features_take_the_place_of_images(data):
    model, batch = made("clip", data, image={"locked": True})
    features = model.image.features(batch.images)
    kept = replace(batch, images=features)
    wanted = plain(model, batch).loss
    exact = gradients(model)
    torch.testing.assert_close(cached(model, kept, 4).loss, wanted, rtol=1e-12, atol=0)
    same(gradients(model), exact)


@pytest.mark.parametrize(("images", "texts"), [(False, True), (True, False)])
def test_a_batch_may_lack_images_or_texts(images, texts, data):
    model, batch = made("clip", data)
    rows = len(batch.images), len(batch.text_index)
    batch = cut(batch, images=torch.full(rows[:1], images), texts=torch.full(rows[1:], texts))
    wanted = plain(model, batch).loss
    exact = gradients(model)
    assert cached(model, batch, 4).loss == wanted
    found = gradients(model)
    assert all(torch.count_nonzero(grad) == 0 for grad in (*found.values(), *exact.values()))


def test_no_tower_sees_more_rows_than_a_chunk_and_chunks_are_even(data):
    model, batch = made("clip", data)
    images, texts = rows_seen(model.image), rows_seen(model.text)
    cached(model, batch, 6)
    for seen, rows in ((images, len(batch.images)), (texts, len(batch.tokens))):
        sizes = [shape[0] for shape in seen]
        assert sum(sizes) == 2 * rows
        assert max(sizes) <= 6
        assert max(sizes) - min(sizes) <= 1


def test_texts_of_like_length_share_a_chunk_without_padding(data):
    model, batch = made("itl", data)
    lengths = batch.token_mask.sum(1).sort().values
    assert lengths[0] < lengths[-1]
    seen = rows_seen(model.text)
    cached(model, batch, 1)
    assert [shape[1] for shape in seen] == 2 * lengths.tolist()


def test_ranks_synchronise_in_the_last_chunk_of_each_tower(data):
    model, batch = made("supcon", data)
    asked, learned = [], []
    last_reached = next(model.image.backbone.parameters())
    last_reached.register_post_accumulate_grad_hook(lambda _: learned.append(asked[-1]))

    @contextmanager
    def sync(last):
        asked.append(last)
        yield
        asked.append("outside")

    cached(model, batch, 5, sync=sync)
    assert learned == [False] * 5 + [True]  # three chunks of each view


def test_recording_in_the_first_pass_changes_nothing(data):
    model, batch = made("clip", data, **RANDOM)
    found = []
    for compiled in (False, True):
        torch.manual_seed(3)
        loss = cached(model, batch, 4, compute=ComputeSettings(compile=compiled)).loss
        found.append({"loss": loss, **gradients(model)})
    same(*found)


def test_a_chunk_of_nothing_is_refused(data):
    model, batch = made("clip", data)
    with pytest.raises(UserError, match="a chunk of 0 rows"):
        cached(model, batch, 0)


def test_two_ranks_of_unequal_size_equal_one(data, tmp_path):
    run_forks(ranks_work, data, str(tmp_path), free_port(), processes=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    others = {"one-sided": "clip", "ddp": "itl", "fsdp": "itl", "locked": "itl", "parts": "filip"}
    for name in (*CHUNKED, *others):
        model, batch = made(others.get(name, name), data, image=LOCKED if name == "locked" else None)
        wanted = plain(model, batch).loss.item()
        exact = gradients(model)
        for loss, found in (each[name] for each in both):
            assert loss == pytest.approx(wanted, rel=1e-12)
            same({n: found[n] for n in exact}, exact, rtol=1e-8, atol=1e-11)
            # A gradient that one process lacks is zero on all.
            assert all(torch.count_nonzero(g) == 0 for n, g in found.items() if n not in exact), name
    assert both[0]["chunk"] == both[1]["chunk"]
