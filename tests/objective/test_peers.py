import torch

from unicl.objective.peers import ALONE, exchanged, gathered, own_rows, share, sizes_of, total
from unicl.space import Columns, Embedding, Keys


def test_one_process_shares_with_nobody_and_copies_nothing():
    keys = Keys.single(torch.tensor([5, 0, 7]))
    whole = torch.eye(3)
    columns = Columns(
        images=Embedding(whole=whole, features=whole),
        image_keys=keys,
        texts=None,
        text_keys=Keys.empty(0),
        text_counts=torch.zeros(0),
    )
    shared = share(columns)
    assert shared.image_keys is keys
    assert (shared.image_sizes, shared.text_sizes) == ((3,), (0,))
    assert (shared.own_images, shared.own_texts) == (slice(0, 3), slice(0, 0))


def test_one_process_exchanges_nothing():
    rows = torch.ones(2, 3, requires_grad=True)
    assert gathered(rows, sizes=(2,), peers=ALONE) is rows
    assert exchanged(rows, sizes=(2,), peers=ALONE) is rows
    assert total(rows, peers=ALONE) is rows


def test_rows_of_a_process_lie_behind_those_of_the_processes_before():
    assert [own_rows((3, 0, 2), rank=rank) for rank in range(3)] == [slice(0, 3), slice(3, 3), slice(3, 5)]


def test_a_mask_over_all_rows_says_how_many_each_process_keeps():
    mask = torch.tensor([True, False, True, False, False])
    assert sizes_of(mask, sizes=(3, 0, 2)) == (2, 0, 0)
