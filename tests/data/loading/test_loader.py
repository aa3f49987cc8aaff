import pytest
import torch

from loader_work import Counting
from unicl.data.loading.loader import Pace, by_threads, cores_here, pays
from unicl.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def made(maker, steps, *, threads=2, ahead=2, stall=300.0):
    return by_threads(maker, steps, shape=maker.shape, pace=Pace(threads=threads, ahead=ahead, stall=stall))


def first_pixels(batches):
    return [each.batch.images[:, 0, 0, 0].tolist() for each in batches]


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (2, 3), (5, 1), (3, 8)])
def test_batches_come_in_order_whatever_the_threads(threads, ahead):
    wanted = [[4 * step + k for k in range(4)] for step in range(3, 15)]
    assert first_pixels(made(Counting(), range(3, 15), threads=threads, ahead=ahead)) == wanted


def test_no_steps_give_no_batches():
    assert first_pixels(made(Counting(), range(5, 5))) == []


def test_batches_that_are_kept_do_not_change():
    kept = list(made(Counting(), range(12), ahead=1))
    assert first_pixels(kept) == [[4 * step + k for k in range(4)] for step in range(12)]


def test_a_fault_of_a_read_is_named_when_its_step_comes():
    batches = made(Counting("fail", at=10), range(9), ahead=4)
    assert first_pixels([next(batches), next(batches)]) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(
        UserError, match=r"reading numbers/10 failed: ZeroDivisionError: nothing.*loader_work\.py"
    ) as told:
        next(batches)
    assert told.value.code == 1


def test_an_error_for_the_user_stays_as_it_is():
    with pytest.raises(UserError, match="^the table has gone$") as told:
        list(made(Counting("complain"), range(9)))
    assert told.value.code == 2


def test_a_read_that_stalls_is_told_and_then_ends_the_run_by_its_name(capfd):
    batches = made(Counting("hang", at=10), range(9), stall=0.5)
    next(batches), next(batches)
    with pytest.raises(UserError, match=r"no batch came for \d+ s: numbers/10 is being read for \d+ s") as told:
        next(batches)
    assert told.value.code == 1
    assert "numbers/10 is being read" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("images", "device", "cores", "wanted"),
    [
        (10**6, CUDA, 2, True),
        (10**6, CPU, 16, True),
        (10**6, CPU, 4, False),
        (100, CUDA, 16, False),
        (100, CPU, 16, False),
    ],
)
def test_a_process_pays_beside_an_accelerator_or_where_cores_are_left(images, device, cores, wanted):
    assert pays(images=images, device=device, cores=cores) == wanted


def test_the_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    alone = cores_here()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores_here() == max(1, alone // 2)
