import gzip
import json
import re
from functools import partial
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch.multiprocessing import spawn

from profile_work import profile_work
from rank_work import free_port
from tiny import tiny, write_photos
from unicl.data.collate import class_texts
from unicl.data.quarantine import Quarantine
from unicl.data.sources import load_all
from unicl.data.stream import Stream
from unicl.errors import UserError
from unicl.run import build_model
from unicl.towers.text import build_tokenizer
from unicl.train.optim import OptimSettings, adamw, take_step
from unicl.train.profiling.profile import LEAST_STEPS, Profile, Unwatched
from unicl.train.ranks import Ranks
from unicl.train.step import plain_step


def parts(folder, name="itl", tower="test_vit"):
    recipe, sources = tiny(name, tower=tower), load_all(list(write_photos(folder, each=4)))
    tokenizer = build_tokenizer(recipe.text, texts=["a red square number 1"]) if recipe.text else None
    model = build_model(recipe, sources, tokenizer=tokenizer).train()
    stream = Stream(
        sources,
        recipe.data,
        texts=class_texts("en"),
        tokenizer=tokenizer,
        size=32,
        seed=0,
        quarantine=Quarantine(limit=0, path=folder / "bad.jsonl"),
    )
    return model, stream


def take_gradient(model, batch, optimiser, *, step, precision):
    torch.manual_seed(step)
    optimiser.zero_grad(set_to_none=True)
    plain_step(model, batch, ranks=Ranks(), precision=precision)


def run(model, stream, profile, *, steps, precision="fp32", console=None):
    """The training loop, as far as a profile is concerned."""
    optimiser = adamw(model, OptimSettings(lr=1e-3))
    batches = profile.read(stream.batches(0, stop=steps), console=console)
    for step in range(steps):
        batch = next(batches)
        gradient = partial(take_gradient, model, batch, optimiser, step=step, precision=precision)
        profile.rehearse(gradient)
        with profile.part("backward"):
            gradient()
        with profile.part("optimiser"):
            take_step(optimiser, rate=1e-3, seed=step)
    batches.close()


def profile_of(model, out, *, steps, precision="fp32"):
    return Profile(model, out, steps=steps, batch=12, precision=precision, ranks=Ranks())


@pytest.mark.parametrize("steps", [LEAST_STEPS, 7])
def test_a_profile_writes_a_report_and_a_trace_that_names_the_parts(tmp_path, steps):
    model, stream = parts(tmp_path)
    profile, shown = profile_of(model, tmp_path / "profile", steps=steps), StringIO()
    run(model, stream, profile, steps=steps, console=Console(file=shown, width=150))
    report = profile.report
    assert report.steps == steps - LEAST_STEPS + 1
    busy = ("input", "image tower", "text tower", "objective", "backward", "optimiser")
    assert all(report.seconds[part] > 0 for part in busy)
    assert report.seconds["communication"] == 0
    assert report.flops > 12 * 3 * 1e6
    assert 0 < report.mfu < 1
    assert report.advice in (tmp_path / "profile" / "profile.md").read_text()
    assert "image tower" in shown.getvalue()
    assert "samples/s" in shown.getvalue()
    with gzip.open(tmp_path / "profile" / "trace.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"image tower", "text tower", "objective", "optimiser", "input"} <= names


@pytest.mark.parametrize(("tower", "precision"), [("test_vit", "bf16"), ("test_efficientnet", "fp32")])
def test_a_profile_changes_no_weight(tmp_path, tower, precision):
    found = []
    for watched in (True, False):
        torch.manual_seed(0)
        model, stream = parts(tmp_path / str(watched), tower=tower)
        profile = profile_of(model, tmp_path / "p", steps=5) if watched else Unwatched()
        run(model, stream, profile, steps=5, precision=precision)
        found.append(model.state_dict())
    watched, alone = found
    assert all(torch.equal(value, alone[name]) for name, value in watched.items())


def test_a_run_that_goes_on_is_no_longer_watched(tmp_path):
    model, stream = parts(tmp_path)
    profile = profile_of(model, tmp_path / "p", steps=LEAST_STEPS)
    run(model, stream, profile, steps=LEAST_STEPS + 3)
    assert profile.report.steps == 1
    assert not model.image._forward_hooks
    assert not model.objective._forward_hooks


def test_a_run_that_stops_early_leaves_no_hook_and_no_counter(tmp_path):
    for stop in (1, 2, 3):
        model, stream = parts(tmp_path / str(stop))
        profile = profile_of(model, tmp_path / "p", steps=LEAST_STEPS)
        run(model, stream, profile, steps=stop)
        assert profile.report is None
        assert not model.image._forward_hooks
        with torch.no_grad():
            assert model(next(stream.batches(0, stop=1))).images.whole.isfinite().all()


def test_too_few_steps_are_refused_before_the_first(tmp_path):
    model, _ = parts(tmp_path)
    with pytest.raises(UserError, match="needs 4 steps, but the run takes 3; raise --steps"):
        profile_of(model, tmp_path, steps=3)


@pytest.mark.slow
def test_two_processes_see_how_long_they_wait_for_each_other_and_one_writes(tmp_path):
    spawn(profile_work, args=(write_photos(tmp_path, each=8), tmp_path / "run", free_port()), nprocs=2)
    page = (tmp_path / "run" / "profile" / "profile.md").read_text()
    share = float(re.search(r"\| communication \| [\d.]+ \| ([\d.]+)% \|", page).group(1))
    assert 0 < share < 90
    assert sorted(path.name for path in (tmp_path / "run" / "profile").iterdir()) == ["profile.md", "trace.json.gz"]
