import pytest
import torch

from gather_work import columns, gather_work
from rank_work import free_port
from unicl.train.ranks import Ranks, gather, gather_objects


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(gather_work, args=(free_port(), str(folder)), nprocs=3)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


def test_rows_of_unequal_processes_come_together_in_order(results):
    for result in results:
        assert result["whole"][:, 0].tolist() == [0, 1, 2, 3, 4]
        assert result["features"][:, 0].tolist() == [0, 2, 4, 6, 8]
        assert result["rows"].tolist() == [0, 1, 2, 3, 4]
        assert result["keys"].tolist() == [100, 101, 102, 103, 104]


def test_gradients_through_the_gathered_rows_equal_one_process(results):
    whole = columns(5, first=0)
    weight = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    ((whole.images.whole @ weight).square().sum() * weight.sum()).backward()
    for result in results:
        assert torch.allclose(result["gradient"], weight.grad)
        assert result["unused"].tolist() == [0, 0]


def test_decisions_are_shared(results):
    for result in results:
        assert result["any"].tolist() == [True, False]
        assert result["objects"].tolist() == [0, 1, 2]


def test_one_process_needs_no_group():
    rows = torch.ones(2, 3)
    assert gather(rows, ranks=Ranks()) is rows
    assert Ranks().any(True)
    assert gather_objects("x", ranks=Ranks()) == ["x"]
