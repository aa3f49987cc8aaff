"""One common check over every public recipe."""

import json
import math
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rank_work import free_port, step, step_work
from tiny import tiny, write_photos
from unicl.lookup import names
from unicl.model import load_model
from unicl.run import Job, train

RECIPES = names()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Each recipe trained for a few steps, once."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "run"
            recipe = tiny(name, steps=20, average=0.9, save_every=10)
            train(Job(recipe=recipe, data=data), made[name])
        return made[name]

    return run


def weights(folder):
    return {file: load_file(folder / file) for file in ("model.safetensors", "training.safetensors")}


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns_a_small_set(name, runs):
    values = losses(runs(name))
    assert len(values) == 20
    assert sum(values[-4:]) / 4 < 0.97 * values[0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_model_loads_equal(name, runs, tmp_path):
    model = load_model(runs(name))
    model.save(tmp_path / "copy")
    again = load_model(tmp_path / "copy")
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert again.settings == model.settings
    assert torch.equal(again.embed_image(pixels), model.embed_image(pixels))
    if model.text is not None:
        texts = ["a red square", "something blue"]
        assert torch.equal(again.embed_text(texts), model.embed_text(texts))


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_is_bit_for_bit_the_run_that_never_stopped(name, runs, tmp_path):
    whole = runs(name)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000020")
    job = Job(recipe=tiny(name, steps=20, average=0.9, save_every=10), data=_data_of(whole))
    train(job, cut, resume=True)
    last = "checkpoints/step-00000020"
    for file, tensors in weights(whole / last).items():
        resumed = load_file(cut / last / file)
        assert all(torch.equal(resumed[key], value) for key, value in tensors.items()), file
    assert losses(cut) == losses(whole)


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_knows_what_it_was_trained_for(name, runs):
    config = json.loads((next((runs(name) / "checkpoints").iterdir()) / "config.json").read_text())
    assert config["recipe"] == name
    assert config["views"] == {"instances": None, "classes": 16 if name == "itl" else None}


def test_two_ranks_equal_one_in_loss_and_every_gradient(data, tmp_path):
    torch.multiprocessing.spawn(step_work, args=(data, str(tmp_path), free_port()), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in RECIPES:
        loss, gradients = step(name, data)
        for other, others in (each[name] for each in both):
            assert math.isclose(other, loss, rel_tol=1e-12), name
            assert set(gradients) <= set(others), name
            for parameter, gradient in gradients.items():
                torch.testing.assert_close(
                    others[parameter], gradient, rtol=1e-8, atol=1e-11, msg=f"{name} {parameter}"
                )


def _data_of(run):
    return tuple(yaml.safe_load((run / "config.yaml").read_text())["data"])
