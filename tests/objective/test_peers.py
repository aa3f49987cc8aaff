import torch

from apart_work import GATHERS, ROWS, apart_work, contrasted
from forks import run_forks
from rank_work import free_port
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


def test_what_is_taken_from_other_processes_is_as_asked(tmp_path):
    run_forks(apart_work, free_port(), str(tmp_path), processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = contrasted("exact", slice(None))
    halves = [contrasted("none", place) for place in (slice(0, ROWS[0]), slice(ROWS[0], None))]
    # cn_clip's gather leaves towers half of their gradient on two processes, and the scale all of it.
    shares = (1.0, 0.5, 0.5, 1.0)
    wanted = {
        "exact": whole,
        "detached": [share * value for share, value in zip(shares, whole, strict=True)],
        "none": [(a + b) / 2 for a, b in zip(*halves, strict=True)],
    }
    assert wanted.keys() == set(GATHERS)
    for gather, expected in wanted.items():
        for each in (first[gather], second[gather]):
            for value, other in zip(each, expected, strict=True):
                torch.testing.assert_close(value, other, rtol=1e-10, atol=1e-13, msg=gather)


def test_alone_all_ways_of_gathering_are_one():
    every = [contrasted(gather, slice(None)) for gather in GATHERS]
    for other in every[1:]:
        assert all(torch.equal(a, b) for a, b in zip(every[0], other, strict=True))
