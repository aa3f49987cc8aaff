import json
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from features_work import rank_work, rows_of, samples_of, slow_work, small_model
from forks import forks, run_forks
from rank_work import free_port
from tiny import tiny, write_photos
from unicl.data.image import Augment
from unicl.data.mix import Mix
from unicl.data.sources import load_all
from unicl.data.stream import StreamSettings
from unicl.errors import UserError
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.run import evaluate
from unicl.model import load_model
from unicl.run import Job, train
from unicl.space import Sample
from unicl.train import features
from unicl.train.learning import Learning
from unicl.train.stages import Stage


@pytest.fixture
def data(tmp_path):
    return write_photos(tmp_path, each=4)


def locked(data, name="clip", *, cache="auto", steps=10, tower="test_vit", chunk=None, val=(), init=None, **options):
    recipe = tiny(name, steps=steps, tower=tower, **{k: options.pop(k) for k in ("precision",) if k in options})
    made = replace(
        recipe,
        image=replace(recipe.image, locked=True),
        data=replace(recipe.data, **{"augment": None, **options}),
        compute=replace(recipe.compute, cache=str(cache), chunk=chunk),
    )
    return Job(recipe=made, data=data, val=val, init=init)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [line["loss"] for line in metrics(run) if "loss" in line]


def weights(run, step=10):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def shards(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def calls_of(model):
    """How many pictures its backbone sees from now on, one number a call."""
    seen = []
    model.image.backbone.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    return seen


CASES = (
    ("clip", "test_vit", {}),
    pytest.param("itl", "test_efficientnet", {}, marks=pytest.mark.slow),
    ("wukong", "test_vit", {}),
    pytest.param("clip", "test_vit", {"chunk": 5}, marks=pytest.mark.slow),
    pytest.param("clip", "test_vit", {"views": 2}, marks=pytest.mark.slow),
)


@pytest.mark.parametrize(("name", "tower", "options"), CASES)
def test_a_cached_run_equals_the_live_run_and_nothing_locked_moves(data, tmp_path, name, tower, options):
    for cache in ("off", tmp_path / "kept"):
        job = locked(data, name, cache=cache, tower=tower, **options)
        train(job, tmp_path / f"run-{cache == 'off'}")
    live, cached = tmp_path / "run-True", tmp_path / "run-False"
    assert sum(1 for _ in shards(tmp_path / "kept")) == 1
    torch.testing.assert_close(losses(cached), losses(live), rtol=1e-5, atol=1e-6)
    mine, wanted = weights(cached), weights(live)
    begun = small_model(data, name="supcon", tower=tower).image.state_dict()
    for key, value in wanted.items():
        if key.startswith("image.backbone."):
            assert torch.equal(mine[key], value), key
            assert mine[key].shape == begun[key.removeprefix("image.")].shape
        torch.testing.assert_close(mine[key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.slow
def test_features_in_bfloat16_are_those_of_a_live_run_in_bfloat16(data, tmp_path):
    for cache in ("off", tmp_path / "kept"):
        train(locked(data, cache=cache, steps=3, precision="bf16"), tmp_path / f"run-{cache == 'off'}")
    torch.testing.assert_close(losses(tmp_path / "run-False"), losses(tmp_path / "run-True"), rtol=2e-3, atol=0)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["32px-bf16"]


def test_each_image_is_seen_once_and_one_that_cannot_be_read_is_said_so(data, tmp_path):
    (tmp_path / "photos" / "red" / "1.png").write_bytes(b"broken")
    train(locked(data, steps=4), tmp_path / "run")
    (only,) = (tmp_path / "run" / "features" / "32px-fp32").glob("*.safetensors")
    assert load_file(only)["rows"].shape[0] == 11  # of 24 samples, two for each image
    assert not list(tmp_path.rglob("*.part"))
    said = {json.loads(line)["reason"] for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()}
    assert said == {"not an image"}


@pytest.mark.slow
def test_runs_with_other_heads_and_data_share_a_folder(data, tmp_path):
    train(locked(data[1:], cache=tmp_path / "kept", steps=2), tmp_path / "first")
    before = shards(tmp_path / "kept")
    train(locked(data, "unicl", cache=tmp_path / "kept", steps=2), tmp_path / "second")
    assert len(before) == 1
    assert shards(tmp_path / "kept") == before


def test_only_a_picture_that_changed_is_looked_at_again(data, tmp_path):
    model = small_model(data)
    before = rows_of(data, tmp_path / "kept", model=model)
    changed = tmp_path / "photos" / "red" / "1.png"
    changed.write_bytes((tmp_path / "photos" / "blue" / "2.png").read_bytes())
    seen = calls_of(model)
    after = rows_of(data, tmp_path / "kept", model=model)
    assert sum(seen) == 2  # that one, and the made-up picture that says how wide a row is
    differs = (after != before).any(dim=1)
    assert differs.sum() == 2  # in the folder and in the table
    blue = [k for k, sample in enumerate(samples_of(data)) if str(sample.image).endswith("blue/2.png")]
    torch.testing.assert_close(after[differs][0], after[blue[0]])


def test_a_run_that_was_killed_goes_on_where_it_stopped(data, tmp_path):
    process = forks().Process(target=slow_work, args=(data, tmp_path / "kept"))
    process.start()
    end = time.monotonic() + 300
    while len(shards(tmp_path / "kept")) < 2 and process.is_alive() and time.monotonic() < end:
        time.sleep(0.005)
    process.kill()
    process.join()
    before = shards(tmp_path / "kept")
    assert 2 <= len(before) < 6
    (tmp_path / "kept" / "32px-fp32" / "half.part").write_bytes(b"what a killed run leaves")
    model = small_model(data)
    seen = calls_of(model)
    rows = rows_of(data, tmp_path / "kept", model=model)
    assert sum(seen) == 1 + 12 - 2 * len(before)
    assert before.items() <= shards(tmp_path / "kept").items()
    assert not list(tmp_path.rglob("*.part"))
    torch.testing.assert_close(rows, rows_of(data, tmp_path / "whole"))


def test_two_processes_share_the_work_and_read_the_same(data, tmp_path):
    run_forks(rank_work, data, tmp_path, free_port(), 2, processes=2)
    first, second = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    assert first["seen"] == second["seen"] == [1, 6]
    assert torch.equal(first["rows"], second["rows"])
    torch.testing.assert_close(first["rows"], rows_of(data, tmp_path / "one"))


def test_many_small_shards_give_the_rows_of_one(data, tmp_path, monkeypatch):
    whole = rows_of(data, tmp_path / "one")
    monkeypatch.setattr(features, "MOST_ROWS", 3)
    torch.testing.assert_close(rows_of(data, tmp_path / "many", batch=2), whole)
    assert len(shards(tmp_path / "many")) == 3
    monkeypatch.setattr(features, "MOST_SECONDS", 0.0)
    torch.testing.assert_close(rows_of(data, tmp_path / "timed", batch=2), whole)
    assert len(shards(tmp_path / "timed")) == 6


def test_a_cache_of_another_model_or_transform_is_refused(data, tmp_path):
    rows_of(data, tmp_path / "kept")
    other = small_model(data)
    with torch.no_grad():
        next(other.image.backbone.parameters()).add_(1)
    with pytest.raises(UserError, match="another tower: test_vit .* name another folder with --cache"):
        rows_of(data, tmp_path / "kept", model=other)
    framed = small_model(data, frame=replace(small_model(data).settings.image.frame, mode="squash"))
    with pytest.raises(UserError, match="another transform: 32 px, crop.*32 px, squash"):
        rows_of(data, tmp_path / "kept", model=framed)


def test_a_head_that_learned_changes_nothing(data, tmp_path):
    model = small_model(data)
    before = rows_of(data, tmp_path / "kept", model=model)
    with torch.no_grad():
        next(model.image.head.parameters()).add_(1)
    seen = calls_of(model)
    assert torch.equal(rows_of(data, tmp_path / "kept", model=model), before)
    assert seen == [1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"augment": Augment()}, "data.augment=null"),
        ({"mix": Mix()}, "data.mix=null"),
        ({"mirror": 0.5}, "data.mirror=0"),
    ],
)
def test_pictures_that_vary_are_refused_with_what_to_set(data, tmp_path, options, reason):
    with pytest.raises(UserError, match=reason):
        train(locked(data, cache=tmp_path / "kept", **options), tmp_path / "run")
    train(locked(data, steps=4, **options), tmp_path / "live")
    assert not (tmp_path / "live" / "features").exists()


def test_a_tower_that_learns_is_refused(data, tmp_path):
    job = locked(data, cache=tmp_path / "kept")
    learns = replace(job.recipe, image=replace(job.recipe.image, locked=False))
    with pytest.raises(UserError, match="--lock-image"):
        train(replace(job, recipe=learns), tmp_path / "run")


@pytest.mark.slow
def test_by_itself_a_run_keeps_features_where_that_pays(data, tmp_path):
    few = locked(data, steps=1, batch=6)
    for name, job in (("few", few), ("parts", locked(data, "wukong", steps=4)), ("off", locked(data, cache="off"))):
        train(job, tmp_path / name)
        assert not (tmp_path / name / "features").exists(), name


def test_a_damaged_shard_is_named(data, tmp_path):
    rows_of(data, tmp_path / "kept")
    (only,) = (tmp_path / "kept").rglob("*.safetensors")
    whole = only.read_bytes()
    only.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{only.name} is damaged.*remove it"):
        rows_of(data, tmp_path / "kept")
    (only.parent / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json does not say what the features"):
        rows_of(data, tmp_path / "kept")


def test_a_run_on_a_model_resumes_with_its_features(data, tmp_path):
    train(Job(recipe=tiny("clip", steps=2), data=data), tmp_path / "base")
    job = locked(data, steps=4, init=str(tmp_path / "base"))
    short = replace(job, recipe=replace(job.recipe, fit=replace(job.recipe.fit, steps=3)))
    train(short, tmp_path / "run")
    before = shards(tmp_path / "run" / "features")
    train(job, tmp_path / "run", resume=True)
    assert shards(tmp_path / "run" / "features") == before
    assert len(losses(tmp_path / "run")) == 4


@pytest.mark.slow
def test_stages_read_what_is_kept_until_the_tower_learns(data, tmp_path):
    stages = (
        Stage(steps=4, image=Learning(part="head")),
        Stage(steps=4, image=Learning(part="head"), size=64),
        Stage(steps=2, image=Learning(), size=32),
        Stage(steps=2, image=Learning(part="head")),
    )
    for cache in ("off", tmp_path / "kept"):
        job = locked(data, cache=cache)
        job = replace(job, recipe=replace(job.recipe, stages=stages))
        train(job, tmp_path / f"run-{cache == 'off'}")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["32px-fp32", "64px-fp32"]
    live, cached = losses(tmp_path / "run-True"), losses(tmp_path / "run-False")
    assert len(live) == 12
    torch.testing.assert_close(cached, live, rtol=1e-4, atol=1e-6)


def test_validation_looks_at_each_image_once_and_gives_the_numbers_of_a_live_run(data, tmp_path):
    for cache in ("off", tmp_path / "kept"):
        job = locked(data, cache=cache, steps=4, val=data[1:])
        job = replace(job, recipe=replace(job.recipe, fit=replace(job.recipe.fit, eval_every=2)))
        train(job, tmp_path / f"run-{cache == 'off'}")
    live, cached = (
        [m["evaluation"] for m in metrics(tmp_path / f"run-{x}") if "evaluation" in m] for x in (True, False)
    )
    assert len(live) == 2
    for mine, wanted in zip(cached, live, strict=True):
        assert mine == pytest.approx(wanted, abs=1e-6)


def test_evaluation_reads_what_training_kept(data, tmp_path):
    train(locked(data, cache=tmp_path / "kept", steps=4), tmp_path / "run")
    model = load_model(tmp_path / "run")
    (tmp_path / "photos" / "red" / "3.png").write_bytes(b"broken")
    fast = Bootstrap(resamples=20)
    sources = load_all(data[1:]), load_all(data[:1])
    tasks = [(sources[0], ("retrieval",)), (sources[1], ("probe", "knn", "zeroshot"))]
    live = [evaluate(model, each, tasks=names, bootstrap=fast) for each, names in tasks]
    seen = calls_of(model)
    kept = [evaluate(model, each, tasks=names, bootstrap=fast, cache=tmp_path / "kept") for each, names in tasks]
    assert sum(seen) == len(tasks)  # the made-up picture alone
    for mine, wanted in zip(kept, live, strict=True):
        assert mine.numbers() == pytest.approx(wanted.numbers(), abs=1e-6)
        assert [one.reason for one in mine.unreadable] == [one.reason for one in wanted.unreadable] == ["not an image"]


def test_evaluation_with_a_cache_of_another_model_is_refused(data, tmp_path):
    rows_of(data, tmp_path / "kept")
    train(Job(recipe=tiny("clip", steps=2), data=data), tmp_path / "run")
    with pytest.raises(UserError, match="another tower"):
        evaluate(load_model(tmp_path / "run"), load_all(data), cache=tmp_path / "kept")


def test_features_of_studies_are_not_kept(tmp_path):
    settings, samples = tiny("clip").image, [Sample(id="s", image=b"a", others=(b"b",))]
    data = StreamSettings(augment=None)
    choice = {"still": True, "out": tmp_path, "samples": samples, "steps": 9}
    assert features.cache_folder(settings, data, asked="auto", **choice) is None
    with pytest.raises(UserError, match="study= shows another picture of a study each time; take it away"):
        features.cache_folder(settings, data, asked=str(tmp_path), **choice)
