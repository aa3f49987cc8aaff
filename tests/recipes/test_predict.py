import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tiny import tiny, write_photos
from unicl import recipes
from unicl.data.image import Augment
from unicl.data.sources import load_all
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers, load_model
from unicl.run import Job, build_model, train
from unicl.towers.text import build_tokenizer
from unicl.train.optim import make_optimiser, parameter_groups

LATER = (pytest.param(task, marks=pytest.mark.slow) for task in ("captioning", "tokens", "labels"))
TASKS = ("bicaptioning", "masked", *LATER)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"))


def small(task, *, tower="test_vit", steps=6, **fit):
    """A small VirTex with the task and the optimiser of the published one, dropout and all."""
    made, asked = tiny("virtex", tower=tower, steps=steps, **fit), recipes.virtex(task=task)
    optim = replace(recipes.virtex(towers="resnet50").optim, lr=0.2, warmup=0, lookahead=2)
    [term] = asked.terms
    term = replace(term, width=32) if hasattr(term, "dropout") else term
    image = replace(made.image, parts=asked.image.parts)
    words = None if asked.words is None else made.words
    data = replace(asked.data, batch=12, workers=1)
    return replace(
        made, terms=(term,), image=image, words=words, data=data, optim=replace(optim, rates={"objective.": 0.5})
    )


def state(folder):
    dcp_to_torch_save(folder / "state", folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True) | load_file(folder / "model.safetensors")


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_learns_and_resumes_bit_for_bit_with_look_ahead_and_dropout(task, data, tmp_path):
    """Cut between two looks ahead, where the slow weights are others than the weights."""
    folder, sources = tmp_path / "whole", data[:1] if task == "labels" else data[1:]
    job = Job(recipe=small(task, save_every=3), data=sources)
    train(job, folder)
    values = losses(folder)
    assert values[-1] < 0.97 * values[0]
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000006")
    train(job, cut, resume=True)
    whole, again = (state(each / "checkpoints" / "step-00000006") for each in (folder, cut))
    assert any(key.endswith(".slow") for key in whole)
    assert [key for key, value in whole.items() if not torch.equal(again[key], value)] == []
    model = load_model(folder)
    assert model.text is None
    assert (model.tokenizer is None) == (task == "labels")
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert model.encode_images(pixels).features.shape == (3, model.image.feature_width)


def built(task, data, *, tower="test_resnet"):
    recipe = small(task, tower=tower)
    tokenizer = None if recipe.words is None else build_tokenizer(recipe.words, texts=["a red square number"])
    return build_model(recipe, load_all(data), tokenizer=tokenizer), recipe


def test_only_norms_and_biases_of_the_decoders_embedding_and_transformers_do_not_decay(data):
    model, recipe = built("bicaptioning", data)
    groups = parameter_groups(model, weight_decay=1e-4, undecayed=recipe.optim.undecayed)
    still = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    root = "objective.terms.captions.decoder"
    linear = ("self.query", "self.key", "self.value", "output.dense")
    biases = {f"{kind}.{name}.bias" for kind in ("attention", "crossattention") for name in linear}
    biases |= {"intermediate.dense.bias", "output.dense.bias"}
    norms = {
        f"{place}.LayerNorm.{part}"
        for place in ("attention.output", "crossattention.output", "output")
        for part in ("weight", "bias")
    }
    wanted = {f"{root}.{way}transformer.layer.0.{name}" for way in ("", "backward_") for name in biases | norms}
    wanted |= {f"{root}.embedding.norm.weight", f"{root}.embedding.norm.bias"}
    assert {name for name, p in model.named_parameters() if id(p) in still} == wanted
    decayed = {name for name, p in model.named_parameters() if id(p) not in still}
    assert {f"{root}.bias", f"{root}.projection.bias"} < decayed
    assert any(".bn" in name and name.endswith("bias") for name in decayed)


def test_the_image_tower_learns_at_its_own_rate(data):
    model, _ = built("bicaptioning", data)
    optim = recipes.virtex(towers="resnet50").optim
    optimiser = make_optimiser(model, optim)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: optim.lr * group["share"] for group in optimiser.param_groups for p in group["params"]}
    assert set(rates) == set(names.values())
    for name, rate in rates.items():
        assert rate == pytest.approx(0.2 if name.startswith("image.") else 1e-3), name
    assert {name.partition(".")[0] for name in rates} == {"image", "objective"}
    with pytest.raises(UserError, match="optim.rates: no parameter has 'objectiv_e'"):
        make_optimiser(model, replace(optim, rates={"objectiv_e": 0.1}))


def test_virtex_trains_as_released():
    recipe = recipes.virtex(towers="resnet50")
    optim, [term] = recipe.optim, recipe.terms
    assert (optim.method, optim.beta1, optim.weight_decay, optim.clip) == ("sgd", 0.9, 1e-4, 10.0)
    assert (optim.lookahead, optim.lookahead_share, optim.warmup) == (5, 0.5, 10_000)
    assert (optim.decline, optim.final) == ("cosine", 0.0)
    assert (recipe.data.batch, recipe.fit.steps, recipe.fit.precision) == (256, 500_000, "bf16")
    assert (recipe.data.mirror, recipe.data.augment) == (0.5, Augment(crop=(0.2, 1.0), jitter=1.0))
    assert (term.task, term.width, term.layers, term.dropout) == ("bicaptioning", 2048, 1, 0.1)
    assert (recipe.words.vocab, recipe.words.context, recipe.text) == (10_000, 30, None)
    assert recipe.image.weights == "random"
    assert not recipe.data.augment.flip


def test_the_published_size_has_its_decoder_and_its_49_places():
    recipe = recipes.virtex(towers="resnet50")
    tokenizer = build_tokenizer(recipe.words, texts=["a red square number"])
    settings = ModelSettings(image=recipe.image, text=None, width=2048, terms=recipe.terms)
    with torch.device("meta"):
        model = TwoTowers(settings, tokenizer=tokenizer)
    decoder, width = model.objective.terms["captions"].decoder, 2048
    layer = 16 * width * width + 19 * width  # matrices; biases of 8, 1 and 4 widths more, and three norms
    count = sum(p.numel() for p in decoder.transformer.parameters())
    assert count == layer
    assert decoder.transformer.layer[0].attention.self.num_attention_heads == 32
    rest = 2 * width + decoder.size * width + 30 * width + decoder.size + 2048 * width + width
    assert sum(p.numel() for p in decoder.parameters()) == 2 * count + rest
    assert model.image.parts.width == 2048
    with torch.device("meta"):
        found = model.image.eval()(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert found.parts.values.shape == (1, 49, 2048)


def test_unknown_tasks_are_named_with_those_that_are():
    with pytest.raises(UserError, match="unknown task 'captions' .did you mean 'captioning'.*labels"):
        recipes.virtex(task="captions")
