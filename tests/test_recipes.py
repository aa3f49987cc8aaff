"""One common check over every public recipe."""

import copy
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from forks import run_forks
from rank_work import free_port, model_and_batch, step, step_work
from tiny import tiny, write_photos
from unicl.lookup import names
from unicl.model import load_model
from unicl.objective.plan import Tiling
from unicl.objective.terms import Contrast
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
    """What is used, what learns, and the optimiser."""
    dcp_to_torch_save(folder / "state", folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True) | load_file(folder / "model.safetensors")


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
    resumed = weights(cut / last)
    assert [key for key, value in weights(whole / last).items() if not torch.equal(resumed[key], value)] == []
    assert losses(cut) == losses(whole)


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_knows_what_it_was_trained_for(name, runs):
    config = json.loads((next((runs(name) / "checkpoints").iterdir()) / "config.json").read_text())
    assert config["recipe"] == name
    assert config["views"] == {"instances": None, "classes": 16 if name == "itl" else None}


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_of_unequal_size_equal_one_in_loss_and_every_gradient(ranks, data, tmp_path):
    run_forks(step_work, data, str(tmp_path), free_port(), ranks, processes=ranks)
    every = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    for name in RECIPES:
        loss, gradients = step(name, data)
        for exchange in ("gather", "ring"):
            for other, others in (each[exchange][name] for each in every):
                assert math.isclose(other, loss, rel_tol=1e-12), name
                assert set(gradients) <= set(others), name
                for parameter, gradient in gradients.items():
                    message = f"{name} {exchange} {parameter}"
                    torch.testing.assert_close(others[parameter], gradient, rtol=1e-8, atol=1e-11, msg=message)


DENSE = "from unicl.objective.losses import sigmoid, softmax\n"


@pytest.mark.parametrize("name", RECIPES)
def test_blockwise_at_any_tile_equals_the_dense_loss_of_a_recipe(name, data, tmp_path):
    (tmp_path / "dense.py").write_text(DENSE)
    model, batch = model_and_batch(name, data)
    model.double().eval()
    results = []
    for objective, rows in [
        (dense_objective(model, tmp_path / "dense.py"), None),
        *((model.objective, n) for n in (1, 4, None)),
    ]:
        model.zero_grad()
        loss, _ = objective(model(batch), tiling=Tiling(rows=rows, keep=0 if rows else 1 << 20))
        loss.backward()
        results.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    for loss, gradients in results[1:]:
        assert math.isclose(loss, results[0][0], rel_tol=1e-12)
        for parameter, gradient in results[0][1].items():
            torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-8, atol=1e-12, msg=parameter)


def dense_objective(model, file):
    """The same terms, parameters included, with the dense losses; those without scores stay as they are."""
    objective = copy.copy(model.objective)
    objective._modules = {"terms": torch.nn.ModuleDict(dict(model.objective.terms.items()))}
    for name, term in model.objective.terms.items():
        if isinstance(term, Contrast):
            dense = copy.copy(term)
            dense.settings = replace(term.settings, loss=f"{file}:{term.settings.loss}")
            objective.terms[name] = dense
    return objective


def _data_of(run):
    return tuple(yaml.safe_load((run / "config.yaml").read_text())["data"])
