import pytest
import torch
from torch import nn

from forks import run_forks
from parallel_work import MODES, NAMES, Training, resume_work, resumed, train_work, trained
from rank_work import free_port
from tiny import write_photos
from unicl.train.parallel import Parallel, share_buffers
from unicl.train.ranks import Ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"), each=4)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """What two processes found and saved, and what three found that went on from it."""
    made = tmp_path_factory.mktemp("parallel")
    for mode in MODES:
        (made / mode / "checkpoints").mkdir(parents=True)
    run_forks(train_work, data, str(made), free_port(), processes=2)
    run_forks(resume_work, data, str(made), free_port(), processes=3)
    return made


@pytest.fixture(scope="module")
def two(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def three(folder):
    return [torch.load(folder / f"resumed-{rank}.pt", weights_only=True) for rank in range(3)]


def close(found, wanted, *, message):
    assert found.keys() == wanted.keys(), message
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one_in_gradients_weights_and_average(name, mode, two, data):
    alone = trained(name, data)
    for found in two:
        close(found[f"{mode} {name}"], alone, message=f"{mode} {name}")


@pytest.mark.parametrize("mode", MODES)
def test_chunks_of_two_processes_equal_the_plain_step_of_one(mode, two, data):
    alone = trained("itl", data)
    for found in two:
        close(found[f"{mode} itl in chunks"], alone, message=mode)


@pytest.mark.parametrize("saved", MODES)
def test_a_checkpoint_of_two_processes_goes_on_with_one_or_three_in_the_other_mode(saved, two, three, folder, data):
    state = {n: v for n, v in two[0][f"{saved} itl"].items() if n.split()[0] in ("weight", "moment", "average")}
    alone = resumed("itl", data, out=folder / saved)
    for found in (alone, *(each[saved] for each in three)):
        assert all(torch.equal(found[name], value) for name, value in state.items())
        close(found, alone, message=saved)


def test_all_processes_get_the_statistics_of_the_first(two):
    assert [found["buffers"]["mean"].tolist() for found in two] == [[1, 1], [1, 1]]


def test_one_process_is_left_alone(data):
    training = Training("itl", data, average=None)
    parallel = Parallel(training.model, ranks=Ranks(), parallel="fsdp")
    assert (parallel.towers, parallel.buckets, parallel.hooks) == ([], [], [])
    with parallel.sync(True):
        training.model.objective.scales()["classes"].log_scale.sum().backward()
    parallel.finish()
    grads = {n for n, p in training.model.named_parameters() if p.grad is not None}
    assert grads == {"objective.terms.classes.scale.log_scale"}
    norm = nn.BatchNorm1d(2)
    share_buffers(norm, ranks=Ranks())
    assert norm.running_mean.tolist() == [0, 0]
