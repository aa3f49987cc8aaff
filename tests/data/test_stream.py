import dataclasses
import threading

import pytest
import torch

from tiny import write_photos
from unicl.data.collate import class_texts
from unicl.data.mix import Mix
from unicl.data.quarantine import Quarantine
from unicl.data.sources import load_all
from unicl.data.stream import Place, Stream, StreamSettings
from unicl.data.text import train_tokenizer
from unicl.errors import UserError

TOKENIZER = train_tokenizer(["a red square number 1", "green blue photo of a"], vocab_size=300, context=16)


def stream(data, *, place=Place(), limit=0, features=None, seed=0, **settings):
    return Stream(
        load_all(data),
        StreamSettings(**{"batch": 8, "workers": 2, **settings}),
        texts=class_texts("en-short"),
        tokenizer=TOKENIZER,
        size=16,
        seed=seed,
        quarantine=Quarantine(limit=limit),
        place=place,
        features=features,
    )


def same(first, second):
    return all(
        torch.equal(a, b)
        for a, b in zip(_tensors(dataclasses.asdict(first)), _tensors(dataclasses.asdict(second)), strict=True)
    )


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value.values() for t in _tensors(v)] if isinstance(value, dict) else []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("stream"))


def test_a_batch_is_a_function_of_the_step_alone(data):
    one = list(stream(data).batches(0, stop=7))
    again = list(stream(data, workers=4, ahead=1).batches(4, stop=7))
    assert all(same(a, b) for a, b in zip(one[4:], again, strict=True))
    assert same(one[2], stream(data).batch(2))
    assert not same(one[2], one[3])


def test_an_epoch_shows_every_sample_once(data):
    made = stream(data)
    assert made.epoch_size == 48
    ids = [id for batch in made.batches(0, stop=6) for id in batch.ids]
    assert len(ids) == len(set(ids)) == 48


def test_the_parts_of_the_ranks_are_the_batch_of_one(data):
    whole = stream(data, batch=7).batch(3)
    parts = [stream(data, batch=7, place=Place(rank=r, ranks=3)).batch(3) for r in range(3)]
    assert sum((part.ids for part in parts), ()) == whole.ids
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_unreadable_images_are_left_out_and_counted(tmp_path):
    photos, _ = write_photos(tmp_path)
    (tmp_path / "photos" / "red" / "3.png").write_bytes(b"not an image")
    made = stream([photos], limit=1)
    ids = [id for batch in made.batches(0, stop=3) for id in batch.ids]
    assert len(ids) == 23
    assert list(made.quarantine.reasons) == ["photos/red/3.png"]
    with pytest.raises(UserError, match="cannot be read"):
        list(stream([photos], limit=0).batches(0, stop=3))


def test_two_views_differ_and_features_take_the_place_of_images(data):
    made = stream(data, views=2).batch(0)
    assert made.views.shape == made.images.shape
    assert not torch.equal(made.views, made.images)
    features = torch.arange(48.0)[:, None].repeat(1, 5)
    assert stream(data, features=features).batch(0).images.shape == (8, 5)


def test_mixed_batches_share_keys_between_neighbours_and_stay_a_function_of_the_step(data):
    made = stream(data[:1], keys="label", mix=Mix(mixup=0.8))
    batch = made.batch(2)
    sums = torch.zeros(batch.image_keys.size).index_add(0, batch.image_keys.rows, batch.image_keys.weights)
    assert torch.allclose(sums, torch.ones(8))
    assert (batch.image_keys.weights < 1).any()
    assert same(batch, made.batch(2))


def test_a_consumer_that_stops_early_leaves_no_thread_behind(data):
    before = threading.active_count()
    batches = stream(data).batches(0, stop=100)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_a_batch_smaller_than_the_number_of_ranks_is_refused(data):
    with pytest.raises(UserError, match="cannot be shared by 9"):
        stream(data, place=Place(rank=0, ranks=9))
