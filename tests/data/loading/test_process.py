import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loader_work import CannotStart, Counting
from tiny import tiny, write_photos
from unicl.data.loading.loader import Pace
from unicl.data.loading.process import by_process
from unicl.errors import UserError
from unicl.run import Job, train

linux = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="reads /proc")


def made(maker, steps, *, threads=2, ahead=2, stall=300.0):
    return by_process(maker, steps, shape=maker.shape, pace=Pace(threads=threads, ahead=ahead, stall=stall))


def wanted(steps):
    return [[(4 * step + k) % 251 for k in range(4)] for step in steps]


def first_pixels(batches):
    return [each.batch.images[:, 0, 0, 0].tolist() for each in batches]


def children():
    """The processes that this one has started and that have not ended."""
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in pids if "unicl.data.loading.process" in Path(f"/proc/{pid}/cmdline").read_text()]


def rings():
    """How often the shared memory of a loader is mapped or open here."""
    descriptors = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    opened = sum("unicl-ring" in str(name) for name in descriptors)
    return opened + Path("/proc/self/maps").read_text().count("unicl-ring")


def test_batches_come_in_order_with_what_was_bad_and_may_all_be_kept():
    batches = list(made(Counting(), range(3, 20), threads=3, ahead=1))
    assert first_pixels(batches) == wanted(range(3, 20))
    assert [int(each.batch.tokens[0, 0]) for each in batches] == list(range(3, 20))
    assert [id for each in batches for id, _ in each.bad] == [f"numbers/{k}" for k in range(14, 80, 7)]


def test_a_batch_is_not_copied_and_stays_what_it_is_while_it_is_held():
    places, kept = set(), []
    for k, each in enumerate(made(Counting(), range(40), ahead=4)):
        assert first_pixels([each]) == wanted([k])
        if k in (5, 20):
            kept.append(each)
        else:
            places.add(each.batch.images.data_ptr())
            each.batch.images.add_(1)
            each.batch.tokens.add_(1)
    assert first_pixels(kept) == wanted((5, 20))
    assert len(places) <= 6


@linux
def test_nothing_is_left_of_a_loader_that_was_closed_or_used_up():
    batches = made(Counting(), range(100))
    next(batches)
    assert len(children()) == 1
    first = next(batches)
    assert rings() > 0
    batches.close()
    assert children() == []
    assert first_pixels([first]) == wanted([1])
    del first
    gc.collect()
    assert rings() == 0


def test_a_fault_of_a_read_is_told_when_its_step_comes():
    batches = made(Counting("fail", at=10), range(9), ahead=4)
    assert first_pixels([next(batches), next(batches)]) == wanted([0, 1])
    with pytest.raises(UserError, match=r"^reading numbers/10 failed: ZeroDivisionError: nothing") as told:
        next(batches)
    assert told.value.code == 1


@pytest.mark.parametrize(
    ("fault", "how"),
    [pytest.param("die", "was ended by SIGKILL", marks=pytest.mark.slow), ("leave", "ended with status 3")],
)
def test_a_process_that_ends_is_an_error_with_what_it_was_reading(fault, how):
    with pytest.raises(UserError, match=rf"the loader process {how}.*numbers/10 is being read.*--resume") as told:
        list(made(Counting(fault, at=10), range(9), threads=1))
    assert told.value.code == 1


def kill_soon(*, delay):
    """Kill the loader process of this one, ``delay`` seconds after it has been started."""
    while not children():
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(children()[0], signal.SIGKILL)


@linux
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_a_process_that_is_killed_at_any_moment_is_an_error(seed):
    killer = threading.Thread(target=kill_soon, kwargs={"delay": random.Random(seed).uniform(0, 1.5)})
    killer.start()
    with pytest.raises(UserError, match=r"the loader process was ended by SIGKILL.*--resume"):
        assert all(first_pixels([each]) == wanted([k]) for k, each in enumerate(made(Counting(), range(10**9))))
    killer.join()
    assert children() == []


@linux
@pytest.mark.slow
def test_a_process_that_stands_still_ends_the_run(capfd):
    batches = made(Counting("hang", at=30), range(99), stall=0.5)
    next(batches)
    os.kill(children()[0], signal.SIGSTOP)
    with pytest.raises(UserError, match="no batch came for"):
        list(batches)
    assert "waiting for data" in capfd.readouterr().err
    assert children() == []


def test_what_cannot_cross_the_border_is_named():
    with pytest.raises(UserError, match=r"cannot be given this data.*of another version.*data\.loader=threads"):
        list(made(CannotStart(), range(3)))
    local = Counting()
    local.shape = threading.Lock()
    with pytest.raises(UserError, match="cannot be given this data"):
        list(by_process(local, range(3), shape=Counting.shape, pace=Pace(threads=1, ahead=1)))


@linux
def test_a_ctrl_c_does_not_reach_it_and_a_read_that_hangs_is_named():
    batches = made(Counting("hang", at=100), range(99), stall=0.5)
    next(batches)
    os.kill(children()[0], signal.SIGINT)
    assert os.getpgid(children()[0]) != os.getpgid(0)
    assert first_pixels(next(batches) for _ in range(24)) == wanted(range(1, 25))
    with pytest.raises(UserError, match=r"no batch came for \d+ s: numbers/100 is being read"):
        next(batches)


TRAINER = """
import os, signal, sys
sys.path[:0] = {path!r}
from loader_work import Counting
from unicl.data.loading.loader import Pace
from unicl.data.loading.process import by_process
batches = by_process(Counting(), range(10**6), shape=Counting.shape, pace=Pace(threads=2, ahead=2))
next(batches)
children = open(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children").read()
print(children, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@linux
def test_the_death_of_the_trainer_ends_it():
    # No guard around the main part either: the loader process does not run the user's script again.
    code = TRAINER.format(path=[str(Path(__file__).parents[2])])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == -signal.SIGKILL
    pid = int(run.stdout.split()[0])
    for _ in range(600):
        status = Path(f"/proc/{pid}/status")
        if not status.is_file() or "State:\tZ" in status.read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the loader process lives on")
    assert run.stderr == ""


@pytest.mark.slow
@linux
def test_a_run_whose_loader_is_killed_resumes_to_the_weights_of_one_that_never_stopped(tmp_path):
    data = write_photos(tmp_path)
    recipe = tiny("itl", steps=24, save_every=3)
    recipe = replace(recipe, data=replace(recipe.data, loader="process", views=1, workers=2))
    threads = replace(recipe, data=replace(recipe.data, loader="threads"))
    train(Job(recipe=threads, data=data), tmp_path / "straight")
    cut, job = tmp_path / "cut", Job(recipe=recipe, data=data)

    def kill_after_a_checkpoint():
        while not any((cut / "checkpoints").glob("step-*[!t]")) or not children():
            time.sleep(0.002)
        os.kill(children()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_after_a_checkpoint)
    killer.start()
    with pytest.raises(UserError, match="the loader process was ended by SIGKILL"):
        train(job, cut)
    killer.join()
    assert train(job, cut, resume=True).step == 24
    last = [
        load_file(run / "checkpoints" / "step-00000024" / "model.safetensors") for run in (tmp_path / "straight", cut)
    ]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0].keys() | last[1].keys())
