import json
import os
import shutil
import signal
import threading
from dataclasses import replace

import pytest
import torch

from tiny import tiny, write_photos
from unicl.errors import UserError
from unicl.run import Job, train
from unicl.train.loop import FitSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("loop"), each=4)


def job(data, *, val=(), name="clip", **fit):
    return Job(recipe=tiny(name, steps=fit.pop("steps", 4), **fit), data=data, val=val)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def poison(monkeypatch, *, steps):
    """Make the loss of some steps not a number, as a bad batch would."""
    from unicl.objective.terms import Objective

    forward, seen = Objective.forward, []

    def bad(self, *args, **kwargs):
        loss, parts = forward(self, *args, **kwargs)
        seen.append(1)
        return (loss * torch.nan if len(seen) - 1 in steps else loss), parts

    monkeypatch.setattr(Objective, "forward", bad)


def test_the_length_is_in_steps_or_in_epochs():
    assert FitSettings(steps=7).length(epoch_size=100, batch=10) == 7
    assert FitSettings(epochs=2.5).length(epoch_size=101, batch=10) == 26


def test_every_step_is_recorded_with_its_scale_and_terms(data, tmp_path):
    outcome = train(job(data, name="itl"), tmp_path / "run")
    assert (outcome.step, outcome.code) == (4, 0)
    first = lines(tmp_path / "run")[0]
    assert {"step", "loss", "loss instances", "loss classes", "scale instances", "lr", "norm", "bad samples"} <= set(
        first
    )


def test_a_loss_that_is_not_finite_stops_with_the_samples_and_keeps_the_weights_from_before(
    data, tmp_path, monkeypatch
):
    poison(monkeypatch, steps={2})
    with pytest.raises(UserError, match=r"of step 2 is not finite.*photos.*Try a lower --lr") as caught:
        train(job(data), tmp_path / "run")
    assert caught.value.code == 1
    bad = next(line for line in lines(tmp_path / "run") if "not_finite" in line)
    assert len(bad["samples"]) == 12
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors").is_file()


def test_a_few_bad_steps_are_skipped_if_asked(data, tmp_path, monkeypatch):
    poison(monkeypatch, steps={1})
    outcome = train(job(data, max_skips=1), tmp_path / "run")
    assert outcome.step == 4
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["skipped"] == 1


def test_the_best_is_kept_and_patience_ends_the_run(data, tmp_path, monkeypatch):
    values = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.9])
    settings = replace(job(data, steps=6, eval_every=1, patience=2, keep=1), val=data)
    monkeypatch.setattr("unicl.run.evaluator", lambda *_, **__: lambda _: {"x": next(values)})
    outcome = train(settings, tmp_path / "run")
    assert outcome.step == 4
    assert json.loads((tmp_path / "run" / "run.json").read_text())["best"] == "step-00000002"
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000004"]


def test_a_rate_that_is_halved_stays_so_when_the_run_goes_on(data, tmp_path, monkeypatch):
    plain = job(data, steps=6, eval_every=1, save_every=4)
    optim = replace(plain.recipe.optim, halve=2, final=1.0, warmup=0, lr=1e-3)
    settings = replace(plain, recipe=replace(plain.recipe, optim=optim), val=data)
    monkeypatch.setattr("unicl.run.evaluator", lambda *_, **__: lambda _: {"x": 0.5})
    train(settings, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    train(settings, tmp_path / "run", resume=True)
    assert [line["lr"] for line in lines(tmp_path / "run") if "lr" in line] == [1e-3] * 3 + [5e-4] * 2 + [2.5e-4]


def test_a_metric_that_is_not_there_lists_those_that_are(data, tmp_path):
    with pytest.raises(UserError, match=r"no metric 'top1'.*zeroshot/top1"):
        train(job(data, val=data[:1], metric="top1", steps=1), tmp_path / "run")


def test_ctrl_c_finishes_the_step_saves_and_resumes_to_the_same_end(data, tmp_path, monkeypatch):
    from unicl.train.loop import _Run

    whole = job(data, steps=6)
    train(whole, tmp_path / "whole")
    step = _Run.step

    def interrupted(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if self.progress.step == 2 and threading.current_thread() is threading.main_thread():
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(_Run, "step", interrupted)
        outcome = train(whole, tmp_path / "cut")
    assert (outcome.step, outcome.code) == (2, 130)
    assert train(whole, tmp_path / "cut", resume=True).step == 6
    last = "checkpoints/step-00000006/model.safetensors"
    assert (tmp_path / "cut" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(data, tmp_path):
    train(job(data), tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert train(job(data), tmp_path / "run", resume=True).step == 4
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("chunk", [pytest.param(5, marks=pytest.mark.slow), "auto"])
def test_a_run_in_chunks_is_the_run_at_once(chunk, data, tmp_path):
    whole = job(data)
    train(whole, tmp_path / "whole")
    compute = replace(whole.recipe.compute, chunk=chunk)
    train(replace(whole, recipe=replace(whole.recipe, compute=compute)), tmp_path / "chunks")
    at_once, in_chunks = ([line["loss"] for line in lines(tmp_path / run)] for run in ("whole", "chunks"))
    assert in_chunks == pytest.approx(at_once, rel=1e-4)
