import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from kill_work import STEPS, Run
from tiny import write_photos

LAST = f"checkpoints/step-{STEPS:08d}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"), each=4)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A run that is never stopped, for each number of processes."""
    made = {}

    def run(ranks):
        if ranks not in made:
            folder = tmp_path_factory.mktemp("straight")
            made[ranks] = folder / "run"
            whole = Run(data, made[ranks], ranks=ranks, log=folder / "log")
            assert whole.end() == [0] * ranks, whole.said()
        return made[ranks]

    return run


def tensors(run, folder, last):
    """All of the last checkpoint: what is used, what learns, and the optimiser."""
    path = folder / f"{run.name}.pt"
    dcp_to_torch_save(run / last / "state", path)
    return torch.load(path, weights_only=True) | load_file(run / last / "model.safetensors")


def assert_equal(run, other, folder, *, last=LAST):
    mine, wanted = tensors(run, folder, last), tensors(other, folder, last)
    assert mine.keys() == wanted.keys()
    assert any(name.startswith("optimiser.") for name in mine)
    assert [name for name, value in wanted.items() if not torch.equal(mine[name], value)] == []


def kill_somewhere(run, rng, *, rank=0):
    """During a step, or during a save."""
    run.at_step(rng.randint(1, 9))
    if rng.random() < 0.5:
        run.at_save()
    run.kill(rank=rank)


def test_a_trainer_killed_at_random_moments_ends_as_if_it_had_never_been(data, straight, tmp_path):
    rng = random.Random(0)
    for _ in range(3):
        run = Run(data, tmp_path / "run", log=tmp_path / "log")
        kill_somewhere(run, rng)
        assert run.end() == [-signal.SIGKILL], run.said()
    assert Run(data, tmp_path / "run", log=tmp_path / "log").end() == [0]
    assert_equal(tmp_path / "run", straight(1), tmp_path)


@pytest.mark.slow
def test_a_trainer_killed_around_a_switch_of_stages_ends_as_if_it_had_never_been(data, tmp_path):
    given = {"log": tmp_path / "log", "recipe": "staged", "more": [part for path in data for part in ("--val", path)]}
    whole = Run(data, tmp_path / "whole", **given)
    assert whole.end() == [0], whole.said()
    assert "stage 1 of 2 (texts) is over at step 4: no better zeroshot/top5 for 1 evaluations" in whole.said()
    for before in (Run.at_save, lambda run: run.at_step(5)):
        run = Run(data, tmp_path / "run", **given)
        run.at_step(4)
        before(run)
        run.kill()
        assert run.end() == [-signal.SIGKILL], run.said()
    assert Run(data, tmp_path / "run", **given).end() == [0]
    assert_equal(tmp_path / "run", tmp_path / "whole", tmp_path, last="checkpoints/step-00000008")


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_death_of_one_of_two_ends_both_and_the_run_goes_on_bit_for_bit(lost, data, straight, tmp_path):
    run = Run(data, tmp_path / "run", ranks=2, log=tmp_path / "log")
    kill_somewhere(run, random.Random(lost), rank=lost)
    codes = run.end()
    assert codes[lost] == -signal.SIGKILL
    assert codes[1 - lost] == 1, run.said()
    assert f"unicl: rank {lost} does not answer at step" in run.said()
    assert "Traceback" not in run.said()
    again = Run(data, tmp_path / "run", ranks=2, log=tmp_path / "log")
    assert again.end() == [0, 0], again.said()
    assert_equal(tmp_path / "run", straight(2), tmp_path)


def test_one_that_hangs_is_named_after_the_timeout(data, tmp_path):
    run = Run(data, tmp_path / "run", ranks=2, log=tmp_path / "log", environment={"UNICL_TIMEOUT": "3"})
    run.at_step(3)
    run.kill(rank=1, number=signal.SIGSTOP)
    run.processes[0].join(60)
    run.kill(rank=1)
    assert run.end() == [1, -signal.SIGKILL], run.said()
    assert "unicl: rank 1 does not answer at step" in run.said()


def test_an_image_that_only_one_of_two_reads_ends_both_with_its_name(data, tmp_path):
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "broken.png").write_bytes(b"broken")
    run = Run((*data, str(tmp_path / "bad")), tmp_path / "run", ranks=2, log=tmp_path / "log", more=("--max-bad", "0"))
    assert run.end() == [1, 1], run.said()
    assert run.said().count("unicl: ") == 1
    assert "broken.png" in run.said()
    assert "reading step" in run.said()
    assert "Traceback" not in run.said()


@pytest.mark.slow
def test_torchrun_ends_when_one_of_its_processes_is_killed(data, straight, tmp_path):
    home, out = Path(__file__).parents[1], tmp_path / "run"
    sources = [part for path in data for part in ("--data", path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(home / "kill_work.py")]
    command += ["train", "--out", str(out), *sources, "--recipe", f"{home / 'kill_work.py'}:recipe"]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while job.poll() is None and not list(out.glob("checkpoints/step-00000002")):
            continue
        workers = subprocess.run(
            ["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        assert job.wait(120) == 1
    assert "does not answer at step" in (tmp_path / "log").read_text()
    again = Run(data, out, ranks=2, log=tmp_path / "log")
    assert again.end() == [0, 0], again.said()
    assert_equal(out, straight(2), tmp_path)
