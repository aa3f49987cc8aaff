"""Training with adapters: steps, processes, the optimiser, and a run that is resumed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from forks import run_forks
from lora_work import RANK, adapted, step_work, stepped
from rank_work import free_port
from tiny import tiny, write_photos
from unicl.model import load_model
from unicl.run import Job, train
from unicl.train.optim import OptimSettings, adamw
from unicl.use.merge import merge


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"), each=4)


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_the_optimiser_only_holds_what_learns(data):
    model, _ = adapted(data)
    held = {id(p) for group in adamw(model, OptimSettings()).param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in held}
    assert names == {n for n, _ in model.named_parameters() if "lora_" in n or ".backbone." not in n}
    assert {"image.head.weight", "text.head.weight", "objective.terms.instances.scale.log_scale"} <= names


def test_a_step_moves_adapters_heads_and_scales_and_nothing_else(data):
    model, _ = adapted(data)
    before, after = model.state_dict(), stepped(data)
    for name, value in before.items():
        learns = "lora_" in name or ".backbone." not in name
        if not name.endswith((".mean", ".std")):
            assert torch.equal(value, after[f"after {name}"]) != learns, name


def test_a_step_in_chunks_equals_the_plain_step(data):
    close(stepped(data, chunk=3), stepped(data))


@pytest.mark.slow
def test_two_processes_equal_one(data, tmp_path):
    run_forks(step_work, data, str(tmp_path), free_port(), processes=2)
    alone = stepped(data)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for way in ("ddp", "fsdp", "chunks"):
            close(found[way], alone)


def recipe(steps):
    made = tiny("itl", steps=steps, average=0.9, save_every=4)
    return replace(made, image=replace(made.image, **RANK), text=replace(made.text, **RANK))


def test_a_run_learns_resumes_bit_for_bit_and_merges(data, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(Job(recipe=recipe(8), data=data), whole)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000008")
    train(Job(recipe=recipe(8), data=data), cut, resume=True)
    last = "checkpoints/step-00000008/model.safetensors"
    first, second = load_file(whole / last), load_file(cut / last)
    assert first.keys() == second.keys()
    assert any("lora_A" in name for name in first)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    losses = [json.loads(line)["loss"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    model = load_model(whole)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    merged = merge(model)
    assert not any("lora_" in name for name in merged.state_dict())
    torch.testing.assert_close(merged.embed_image(pixels), model.embed_image(pixels), rtol=0, atol=1e-5)
    texts = ["a red square", "something blue"]
    torch.testing.assert_close(merged.embed_text(texts), model.embed_text(texts), rtol=0, atol=1e-5)
