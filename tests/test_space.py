from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch

from unicl.space import NO_KEY, Batch, Keys, Sample, Slice, TextType, prefix


def some_keys():
    """Four rows: a caption, nothing, a class and a caption, a class."""
    return Keys(
        rows=torch.tensor([0, 2, 2, 3]),
        keys=torch.tensor([11, 22, 33, 22]),
        types=torch.tensor([TextType.CAPTION, TextType.CLASS, TextType.CAPTION, TextType.CLASS]),
        weights=torch.tensor([1.0, 0.5, 1.0, 1.0]),
        size=4,
    )


def entries(keys):
    return list(zip(keys.rows.tolist(), keys.keys.tolist(), keys.types.tolist(), keys.weights.tolist(), strict=True))


def test_a_sample_needs_only_an_id_and_cannot_be_changed():
    sample = Sample(id="a")
    assert (sample.image, sample.captions, sample.labels, sample.namespace) == (None, (), (), "")
    with pytest.raises(FrozenInstanceError):
        sample.id = "b"
    assert replace(sample, image=Slice(Path("t.tar"), 512, 9)).image.offset == 512


def test_single_keys_leave_out_rows_without_one():
    keys = Keys.single(torch.tensor([5, NO_KEY, -3]), type=TextType.CLASS)
    assert entries(keys) == [(0, 5, 1, 1.0), (2, -3, 1, 1.0)]
    assert keys.size == 3


def test_empty_keys_have_rows_and_no_entries():
    keys = Keys.empty(3)
    assert (keys.size, len(keys.rows)) == (3, 0)
    assert keys.having(TextType.CLASS).tolist() == [False] * 3


def test_rows_are_known_by_the_types_they_carry():
    assert some_keys().having(TextType.CAPTION).tolist() == [True, False, True, False]
    assert some_keys().having(TextType.CLASS).tolist() == [False, False, True, True]


def test_only_keeps_the_entries_of_one_type_and_all_rows():
    kept = some_keys().only(TextType.CLASS)
    assert entries(kept) == [(2, 22, 1, 0.5), (3, 22, 1, 1.0)]
    assert kept.size == 4


def test_select_numbers_the_rows_anew():
    kept = some_keys().select(torch.tensor([False, True, True, True]))
    assert entries(kept) == [(1, 22, 1, 0.5), (1, 33, 0, 1.0), (2, 22, 1, 1.0)]
    assert kept.size == 3
    assert some_keys().select(torch.zeros(4, dtype=torch.bool)).size == 0


def test_moving_keeps_the_values():
    keys = some_keys()
    assert entries(keys.to(torch.device("cpu"))) == entries(keys)
    assert keys.to(torch.device("meta")).rows.device.type == "meta"


def test_a_batch_moves_as_a_whole_with_columns_of_different_lengths():
    batch = Batch(
        images=torch.zeros(4, 3, 2, 2, dtype=torch.uint8),
        image_keys=some_keys(),
        tokens=torch.zeros(2, 5, dtype=torch.int64),
        token_mask=torch.ones(2, 5, dtype=torch.bool),
        text_index=torch.tensor([0, 1, 0]),
        text_keys=Keys.single(torch.tensor([11, 22, 33])),
        text_counts=torch.tensor([1.0, 2.0, 1.0]),
        ids=("a", "b", "c", "d"),
    )
    moved = batch.to(torch.device("meta"))
    tensors = (moved.images, moved.image_keys.keys, moved.tokens, moved.token_mask, moved.text_index, moved.text_counts)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.text_keys.weights.device.type == "meta"
    assert (moved.views, moved.ids) == (None, batch.ids)
    seen = replace(batch, views=batch.images).to(torch.device("meta"))
    assert seen.views.shape == (4, 3, 2, 2)


def test_a_prefix_has_unit_length_and_none_is_the_whole():
    whole = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert prefix(whole, None) is whole
    assert prefix(whole, 8) is whole
    short = prefix(whole, 3)
    assert short.shape == (5, 3)
    assert torch.allclose(short.norm(dim=1), torch.ones(5))
    assert torch.allclose(short * whole[:, :3].norm(dim=1, keepdim=True), whole[:, :3])
