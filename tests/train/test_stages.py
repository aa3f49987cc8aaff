import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from stages_work import staged, two_processes
from tiny import tiny, write_photos
from unicl.data.image import Augment
from unicl.data.sources import load_all
from unicl.errors import UserError
from unicl.recipes.recipe import at_stage, stages_of
from unicl.run import Job, build_model, train
from unicl.towers.text import build_tokenizer
from unicl.towers.weights.positions import resample_grid
from unicl.train.learning import Learning, what_learns
from unicl.train.stages import Phases, Plateau, Stage, Turn, check_shards, check_stages, set_stage

LOCKED = Stage(name="locked", image=Learning(part="none"), steps=3)
BOTH = Stage(name="both", steps=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("stages"), each=4)


def job(data, *stages, name="clip", tower="test_vit", val=(), **fit):
    recipe = tiny(name, tower=tower, save_every=1, keep=100, **fit)
    return Job(recipe=replace(recipe, stages=stages), data=data, val=val)


def model(data, **more):
    recipe = tiny("clip")
    recipe = replace(recipe, image=replace(recipe.image, **more))
    tokenizer = build_tokenizer(recipe.text, texts=["a red green blue square number 0 1 2 3"])
    return build_model(recipe, load_all(data), tokenizer=tokenizer)


def weights(out, step):
    return load_file(out / f"checkpoints/step-{step:08d}" / "model.safetensors")


def moved(out, first, last):
    before, after = weights(out, first), weights(out, last)
    return {name.partition(".")[0] for name in after if not torch.equal(before[name], after[name])}


def lines(out, key):
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if key in line]


def state(out, step):
    return json.loads((out / f"checkpoints/step-{step:08d}/state.json").read_text())


@pytest.mark.parametrize(
    ("average", "chunk"),
    [(0.5, 5), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((None, None), (None, 5), (0.5, None)))],
)
def test_a_locked_tower_is_bit_identical_after_its_stage_and_moves_in_the_next(data, tmp_path, average, chunk):
    made = job(data, LOCKED, BOTH, tower="test_efficientnet", average=average)
    compute = replace(made.recipe.compute, chunk=chunk)
    outcome = train(replace(made, recipe=replace(made.recipe, compute=compute)), tmp_path / "run")
    assert outcome.step == 6
    assert moved(tmp_path / "run", 1, 3) == {"text", "objective"}
    assert moved(tmp_path / "run", 3, 6) == {"image", "text", "objective"}
    start, end = weights(tmp_path / "run", 3), weights(tmp_path / "run", 6)
    assert not torch.equal(start["image.backbone.bn1.running_mean"], end["image.backbone.bn1.running_mean"])


def test_every_stage_has_its_own_rate_batch_and_schedule(data, tmp_path):
    second = replace(BOTH, rate=0.1, warmup=2, batch=6, augment=None)
    train(job(data, LOCKED, second), tmp_path / "run")
    logged = lines(tmp_path / "run", "loss")
    assert [line["stage"] for line in logged] == ["locked"] * 3 + ["both"] * 3
    rates = [line["lr"] for line in logged]
    assert rates[:2] == pytest.approx([2e-3, 1e-3 * (1 + math.cos(math.pi * 0.7 / 2.7))])
    assert rates[3:] == pytest.approx([1e-4, 2e-4, 2e-4])
    assert state(tmp_path / "run", 6)["samples"] == 3 * 12 + 3 * 6
    assert at_stage(job(data, LOCKED, second).recipe, 1).data.augment is None
    assert at_stage(job(data, LOCKED, replace(BOTH, augment=Augment())).recipe, 1).data.augment == Augment()


def test_a_stage_ends_on_a_plateau_and_says_why(data, tmp_path, capsys):
    made = staged(data, plateau=Plateau(metric="zeroshot/top5", patience=2))
    train(made, tmp_path / "run")
    assert lines(tmp_path / "run", "over") == [
        {"step": 3, "stage": "locked", "over": "no better zeroshot/top5 for 2 evaluations"}
    ]
    told = capsys.readouterr().err
    assert "stage 1 of 2 (locked) is over at step 3: no better zeroshot/top5 for 2 evaluations" in told
    assert "stage 2 of 2 (both) is next" in told
    assert [state(tmp_path / "run", k)["stage"] for k in range(1, 7)] == [0, 0, 1, 1, 1, 1]
    assert state(tmp_path / "run", 3)["begun"] == 3
    assert moved(tmp_path / "run", 1, 3) == {"text", "objective"}


@pytest.mark.parametrize("optimiser", [pytest.param("fresh", marks=pytest.mark.slow), "kept"])
def test_a_run_resumed_before_at_and_after_a_switch_is_the_run_that_never_stopped(data, tmp_path, optimiser):
    made = staged(data, plateau=Plateau(metric="zeroshot/top5", patience=2), optimiser=optimiser, size=48)
    train(made, tmp_path / "run")
    wanted = (tmp_path / "run/checkpoints/step-00000006/model.safetensors").read_bytes()
    for step in (2, 3, 4):
        out = tmp_path / f"{step}"
        shutil.copytree(tmp_path / "run", out)
        for later in range(step + 1, 7):
            shutil.rmtree(out / f"checkpoints/step-{later:08d}")
        assert train(made, out, resume=True).step == 6
        assert (out / "checkpoints/step-00000006/model.safetensors").read_bytes() == wanted
        assert state(out, 6) == state(tmp_path / "run", 6)
        assert [line["step"] for line in lines(out, "loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_kept_optimiser_goes_on_and_a_fresh_one_begins(data, tmp_path):
    long = replace(LOCKED, steps=2)
    same = replace(long, optimiser="kept")
    made = {"one": (replace(long, steps=4),), "kept": (long, same), "fresh": (long, replace(same, optimiser="fresh"))}
    losses = {}
    for name, stages in made.items():
        one = job(data, *stages)
        optim = replace(one.recipe.optim, warmup=0, final=1.0)
        still = replace(one.recipe.data, augment=None)
        text = replace(one.recipe.text, dropout=0.0)
        train(replace(one, recipe=replace(one.recipe, optim=optim, data=still, text=text)), tmp_path / name)
        losses[name] = weights(tmp_path / name, 3)["text.head.weight"] - weights(tmp_path / name, 2)["text.head.weight"]
    # A fresh Adam's first step has the size of the rate, whatever the gradient.
    assert losses["fresh"].abs().median() == pytest.approx(2e-3, rel=0.1)
    assert losses["kept"].abs().median() < 1.9e-3


def test_another_resolution_resamples_the_places(data, tmp_path):
    train(job(data, replace(LOCKED, steps=1), Stage(size=48, steps=1, image=Learning(part="none"))), tmp_path / "run")
    before, after = (weights(tmp_path / "run", k)["image.backbone.pos_embed"] for k in (1, 2))
    extra = before.shape[1] - 4
    wanted = resample_grid(before[0], old=(2, 2), new=(3, 3))
    assert after.shape[1] == 9 + extra
    assert torch.equal(after[0], wanted)
    content = json.loads((tmp_path / "run/checkpoints/step-00000002/config.json").read_text())
    assert content["image"]["size"] == 48


def test_a_stage_learns_from_its_sources_alone(data, tmp_path):
    stages = (replace(LOCKED, sources=("captions.csv",)), BOTH)
    train(job(data, *stages, name="itl"), tmp_path / "run")
    logged = lines(tmp_path / "run", "loss")
    assert all(line["loss classes"] == 0 for line in logged[:3])
    assert any(line["loss classes"] > 0 for line in logged[3:])


@pytest.mark.slow
def test_cycles_lock_one_tower_and_then_the_other(data, tmp_path):
    made = Stage(image=Learning(rates=(0, 1)), text=Learning(rates=(1, 0)))
    train(job(data, made, steps=4), tmp_path / "run")
    assert moved(tmp_path / "run", 1, 2) == {"text", "objective"}
    assert moved(tmp_path / "run", 2, 4) == {"image", "objective"}
    wanted = (tmp_path / "run/checkpoints/step-00000004/model.safetensors").read_bytes()
    for later in (3, 4):
        shutil.rmtree(tmp_path / f"run/checkpoints/step-{later:08d}")
    train(job(data, made, steps=4), tmp_path / "run", resume=True)
    assert (tmp_path / "run/checkpoints/step-00000004/model.safetensors").read_bytes() == wanted


@pytest.mark.slow
def test_a_tower_at_a_tenth_of_the_rate_moves_a_tenth(data, tmp_path):
    for name, rates in (("whole", (1.0,)), ("tenth", (0.1,))):
        made = job(data, Stage(image=Learning(rates=rates)), steps=2)
        optim = replace(made.recipe.optim, warmup=0, weight_decay=0.0)
        train(
            replace(made, recipe=replace(made.recipe, optim=optim)),
            tmp_path / name,
        )
    assert {"lr image", "lr text"} <= lines(tmp_path / "tenth", "loss")[0].keys()
    assert not {"lr image", "lr text"} & lines(tmp_path / "whole", "loss")[0].keys()
    assert lines(tmp_path / "tenth", "loss")[0]["lr image"] == pytest.approx(2e-4)


@pytest.mark.slow
def test_two_processes_make_the_switch_together(data, tmp_path):
    plateau = Plateau(metric="zeroshot/top5", patience=2)
    made = staged(data, plateau=plateau, optimiser="kept", size=48, drop_path=0.0)
    train(made, tmp_path / "one")
    two_processes(made, tmp_path)
    for kind in ("ddp", "fsdp"):
        assert state(tmp_path / kind, 6)["begun"] == 3
        wanted, found = weights(tmp_path / "one", 6), weights(tmp_path / kind, 6)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
        before, after = weights(tmp_path / kind, 1), weights(tmp_path / kind, 3)
        assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("image."))


def test_a_plateau_of_a_metric_that_is_not_there_is_said_before_the_first_step(data, tmp_path):
    made = job(data, BOTH, replace(BOTH, plateau=Plateau(metric="retrieval/recal")), val=data)
    with pytest.raises(UserError, match=r"no metric 'retrieval/recal'.*'retrieval/mean_recall'.*there are:"):
        train(made, tmp_path / "run")
    assert lines(tmp_path / "run", "loss") == []


def test_without_validation_data_a_stage_has_its_whole_length(data, tmp_path, capsys):
    train(job(data, replace(LOCKED, plateau=Plateau()), BOTH), tmp_path / "run")
    assert lines(tmp_path / "run", "over") == [{"step": 3, "stage": "locked", "over": "it has had its 3 steps"}]
    assert "without validation data (--val)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage(name="late", sources=("photo",)), r"'late' learns from 'photo' .did you mean 'photos'.*captions\.csv"),
        (Stage(name="late", size=50), r"50 pixels cannot be cut into patches of 16; give a multiple, such as 48"),
        (Stage(name="late", image=Learning(from_block=12)), r"'late': from_block=12 is not one of the 12 blocks"),
        (Stage(name="late", text=Learning(only=("nothing",))), r"'late': only: no parameter fits 'nothing'"),
    ],
)
def test_a_later_stage_that_cannot_be_is_refused_before_the_first_step(data, tmp_path, stage, message):
    with pytest.raises(UserError, match=message):
        train(job(data, LOCKED, stage, tower="deit_tiny_patch16_224"), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_stage_in_which_nothing_learns_is_refused(data):
    one = model(data)
    one.objective.requires_grad_(False)
    with pytest.raises(UserError, match="nothing learns in the stage 'still'"):
        set_stage(one, Stage(name="still", image=Learning(part="none"), text=Learning(part="none")))


def test_a_stage_that_says_nothing_of_a_tower_leaves_it_as_it_is(data):
    one = model(data)
    one.image.backbone.cls_token.requires_grad_(False)
    set_stage(one, Stage())
    assert not one.image.backbone.cls_token.requires_grad
    set_stage(one, replace(Stage(), image=Learning()))
    assert one.image.backbone.cls_token.requires_grad


def test_checking_later_stages_leaves_the_present_one(data):
    one = model(data)
    check_stages(one, (LOCKED, BOTH))
    assert (what_learns(one.image), what_learns(one.text)) == ("none", "all")


@pytest.mark.parametrize("field", ["steps", "epochs", "rate", "batch", "size"])
def test_numbers_of_a_stage_are_above_zero(field):
    with pytest.raises(UserError, match=f"'x' has {field}=0; give a number above 0"):
        Stage(name="x", **{field: 0})
    with pytest.raises(UserError, match="give 1 or more"):
        Plateau(patience=0)


def test_a_recipe_without_stages_has_one_that_follows_its_locks():
    recipe = tiny("wukong")
    assert recipe.stages == ()
    [stage] = stages_of(recipe)
    assert (stage.image, stage.text) == (Learning(part="head"), Learning())
    assert at_stage(recipe, 0) == recipe


def test_adapters_may_wait_for_their_stage():
    recipe = replace(tiny("clip"), stages=(LOCKED, BOTH))
    adapted = replace(recipe, image=replace(recipe.image, lora=2))
    assert [at_stage(recipe, k).image.locked for k in (0, 1)] == [True, False]
    assert not at_stage(adapted, 0).image.locked


def test_phases_tell_when_other_towers_learn(data):
    one = model(data)
    phases = Phases(one, Stage(image=Learning(rates=(0, 1))))
    assert phases.apart
    assert [phases.turn(done) for done in (0.0, 0.4, 0.5, 0.9)] == [True, False, True, False]
    assert phases.factors == {"image": 1, "text": 1.0}


def test_locks_for_a_time_do_not_go_with_shards():
    cycles = Stage(name="cycles", image=Learning(rates=(0, 1)))
    check_shards(cycles, parallel="ddp")
    with pytest.raises(UserError, match=r"'cycles' locks a tower for a time.*take ddp, a ramp, or several stages"):
        check_shards(cycles, parallel="fsdp")


def test_a_turn_says_which_stage_it_is():
    turn = Turn(stages=(LOCKED, BOTH), number=0)
    assert (turn.name(), turn.name(1), turn.last) == ("stage 1 of 2 (locked)", "stage 2 of 2 (both)", False)
