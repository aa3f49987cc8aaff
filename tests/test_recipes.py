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
from rank_work import KINDS, free_port, model_and_batch, step, step_work
from tiny import tiny, write_photos
from unicl import recipes
from unicl.compare import scores
from unicl.data.image import Augment
from unicl.data.text import load_tokenizer
from unicl.errors import UserError
from unicl.lookup import names
from unicl.model import ModelSettings, TwoTowers, ZeroShotSettings, load_model
from unicl.objective.plan import Tiling
from unicl.objective.terms import Contrast
from unicl.run import Job, train
from unicl.similarity.find import find_similarity
from unicl.towers.image import ImageTower
from unicl.towers.weights.published import CLIP_MEAN, CLIP_STD, HALF

RECIPES = names()
TRAINED = [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
"""All of them; those that train by default have one of each kind of term."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data"), findings=True)


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


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_learns_a_small_set(name, runs):
    values = losses(runs(name))
    assert len(values) == 20
    assert sum(values[-4:]) / 4 < 0.97 * values[0]


@pytest.mark.parametrize("name", TRAINED)
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


@pytest.mark.parametrize("name", TRAINED)
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


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_knows_what_it_was_trained_for(name, runs):
    config = json.loads((next((runs(name) / "checkpoints").iterdir()) / "config.json").read_text())
    assert config["recipe"] == name
    assert config["views"] == {"instances": None, "classes": 16 if name == "itl" else None}


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_of_unequal_size_equal_one_in_loss_and_every_gradient(ranks, data, tmp_path):
    run_forks(step_work, data, str(tmp_path), free_port(), ranks, processes=ranks)
    every = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    for name in every[0]["gather"]:
        loss, gradients = step(name, data)
        for exchange in ("gather", "ring"):
            for other, others in (each[exchange][name] for each in every if name in each[exchange]):
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


def test_a_run_of_wukong_leaves_its_image_trunk_bit_for_bit_and_moves_all_behind_it(runs):
    folders = [runs("wukong") / "checkpoints" / f"step-000000{step}" for step in (10, 20)]
    early, late = (load_file(folder / "model.safetensors") for folder in folders)
    moved = {name for name, value in late.items() if not torch.equal(early[name], value)}
    assert any(name.startswith("image.backbone.") for name in late)
    assert not any(name.startswith("image.backbone.") for name in moved)
    assert {name for name in late if name.startswith(("image.head.", "image.parts."))} <= moved
    assert any(name.startswith("text.backbone.") for name in moved)


@pytest.mark.parametrize("name", ["filip", "wukong", "gloria"])
def test_texts_that_say_nothing_have_finite_scores_and_gradients(name, runs):
    """Empty ones, pads written out, and a row without one real token."""
    model = load_model(runs(name)).train()
    tokens, mask = model.tokenizer(["", "[PAD] [PAD]", "<pad>", "a red square", "gone"])
    mask[-1] = False
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    images, texts = model.image(pixels), model.text(tokens, mask)
    assert not texts.parts.mask[-1].any()
    total = torch.zeros(())
    for term in model.settings.terms:
        for table in find_similarity(term.similarity, options=term.options)(images, texts):
            assert torch.isfinite(table).all()
            total = total + table.sum()
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    found = scores(model, model.encode_images(pixels), model.encode_texts(["", "<pad>", "red"]), view="instances")
    assert all(torch.isfinite(table).all() for table in found)


# Towers without a matrix behind them: CLIP's own (openai/CLIP) and Swin-L's (Microsoft).
VIT_B32, VIT_L14, SWIN_L = 87_456_000, 303_179_776, 194_995_476
LAYER_512, LAYER_768 = 3_152_384, 7_087_872
REDUCER = 2 * 256 + 2 * 256 * 32


def chinese_text(layer, dim):
    """Table, places, 12 layers and the last norm of a transformer of 21,128 entries and 32 places."""
    return 21_128 * dim + 32 * dim + 12 * layer + 2 * dim


def published(recipe):
    """The model of a recipe in full size, without memory for its weights."""
    text = recipe.text
    tokenizer = load_tokenizer(text.tokenizer, context=text.context)
    settings = ModelSettings(
        image=recipe.image,
        text=text,
        width=recipe.width,
        terms=recipe.terms,
        zero_shot=recipe.zero_shot,
        recipe=recipe.name,
    )
    with torch.device("meta"):
        return TwoTowers(settings, tokenizer=tokenizer)


def count(module):
    return sum(p.numel() for p in module.parameters())


FULL = [
    (lambda: recipes.filip(towers="b32"), VIT_B32 + 768 * 256, 63_428_096 - 512 * 256),
    pytest.param(
        *(lambda: recipes.filip(towers="l14"), VIT_L14 + 1024 * 256, 123_650_304 - 768 * 512),
        marks=pytest.mark.slow,
    ),
    (
        lambda: recipes.wukong(towers="b32"),
        VIT_B32 + 768 * 256 + REDUCER + 12 * 256,
        chinese_text(LAYER_512, 512) + 512 * 256,
    ),
    pytest.param(
        lambda: recipes.wukong(towers="b32", match="global"),
        VIT_B32 + 768 * 512,
        chinese_text(LAYER_512, 512) + 512 * 512,
        marks=pytest.mark.slow,
    ),
    pytest.param(
        lambda: recipes.wukong(towers="l14"),
        VIT_L14 + 1024 * 256 + REDUCER + 24 * 256,
        chinese_text(LAYER_768, 768) + 768 * 256,
        marks=pytest.mark.slow,
    ),
    pytest.param(
        lambda: recipes.wukong(towers="swin_l", match="tokens"),
        SWIN_L + 1536 * 256 + 256,
        chinese_text(LAYER_768, 768) + 768 * 256,
        marks=pytest.mark.slow,
    ),
    pytest.param(
        lambda: recipes.wukong(towers="swin_l", match="global"),
        SWIN_L + 1536 * 768 + 768,
        chinese_text(LAYER_768, 768) + 768 * 768,
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("recipe", "image", "text"), FULL)
def test_the_papers_towers_have_as_many_weights_as_published(recipe, image, text):
    model = published(recipe())
    assert (count(model.image), count(model.text)) == (image, text)
    locked = model.settings.recipe == "wukong"
    assert {p.requires_grad for p in model.image.backbone.parameters()} == {not locked}
    assert all(p.requires_grad for p in (*model.image.head.parameters(), *model.text.parameters()))


@pytest.mark.parametrize(
    ("towers", "batch", "rate", "places"), [("b32", 320 * 128, 2e-3, 49), ("l14", 160 * 192, 8e-4, 256)]
)
def test_filips_sizes_train_as_in_its_appendix(towers, batch, rate, places):
    recipe = recipes.filip(towers=towers)
    optim, [term] = recipe.optim, recipe.terms
    assert (optim.method, optim.beta1, optim.beta2, optim.eps) == ("lamb", 0.9, 0.999, 1e-4)
    assert (optim.weight_decay, optim.decay_embeddings, optim.warmup, optim.final) == (3e-3, False, 3000, 0.0)
    assert recipe.data.batch == batch
    assert optim.lr == pytest.approx(rate * math.sqrt(batch / 512))
    assert recipes.filip(towers=towers, batch=512).optim.lr == pytest.approx(rate)
    assert recipes.filip(towers=towers, batch=512).data.batch == 512
    assert term.scale.init == pytest.approx(1 / 0.07)
    assert (term.scale.learned, term.similarity, term.part_share, recipe.width) == (True, "tokenwise", 0.25, 256)
    assert recipe.data.augment == Augment(policy="autoaugment")
    assert recipe.zero_shot == ZeroShotSettings(ensemble="similarities")
    assert (recipe.fit.epochs, recipe.fit.precision) == (30, "bf16")
    assert recipe.image.checkpointing
    assert recipe.text.checkpointing
    assert (recipe.text.tokenizer, recipe.text.context, recipe.text.parts.marks) == ("clip", 77, "both")
    patch = int(recipe.image.name.split("patch")[1].split("_")[0])
    assert (recipe.image.size // patch) ** 2 == places
    assert not recipe.image.parts.first


@pytest.mark.parametrize("towers", ["b32", "l14", "swin_l"])
def test_wukongs_variants_differ_in_what_they_compare(towers):
    for match, ensemble, similarity in (
        ("global", "embeddings", "cosine"),
        ("tokens", "probabilities", "tokenwise"),
        ("reduced", "probabilities", "tokenwise"),
    ):
        recipe = recipes.wukong(towers=towers, match=match)
        assert recipe.image.locked
        assert recipe.width == ({"b32": 512}.get(towers, 768) if match == "global" else 256)
        assert recipe.zero_shot == ZeroShotSettings(ensemble=ensemble)
        assert recipe.terms[0].similarity == similarity
        assert (recipe.text.tokenizer, recipe.text.context) == ("chinese", 32)
        assert recipe.text.weights == "random"
        assert recipe.image.weights == "hub"
        assert (recipe.image.parts is None) == (recipe.text.parts is None) == (match == "global")
        if match != "global":
            wanted = 0 if match == "tokens" else {"l14": 24}.get(towers, 12)
            assert recipe.image.parts.reduced == wanted
    assert (recipe.optim.method, recipe.optim.decay_embeddings) == ("lamb", False)


def test_wukongs_swin_reads_pictures_normalised_as_clip_does():
    image = recipes.wukong(towers="swin_l").image
    assert (image.mean, image.std) == (CLIP_MEAN, CLIP_STD)


@pytest.mark.slow
def test_glorias_published_image_tower_has_361_regions_and_its_matrices():
    settings = recipes.gloria(towers="resnet50").image
    tower = ImageTower(replace(settings, weights="random"), width=768).eval()
    assert settings.enlarged == 299
    assert tower.parts.head.weight.shape == (768, 1024)
    assert tower.head.weight.shape == (768, 2048)
    assert (tower.mean.flatten().tolist(), tower.std.flatten().tolist()) == (list(HALF), list(HALF))
    with torch.no_grad():
        found = tower(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert found.parts.values.shape == (1, 361, 768)
    assert found.whole.shape == (1, 768)


def test_gloria_trains_as_released():
    recipe = recipes.gloria(towers="resnet50")
    optim = recipe.optim
    assert (optim.method, optim.beta1, optim.beta2, optim.lr) == ("adam", 0.5, 0.999, 5e-5)
    assert (optim.weight_decay, optim.clip, recipe.data.batch, recipe.fit.epochs) == (1e-6, 0.25, 48, 50)
    assert (recipe.text.context, recipe.text.parts.layers, recipe.text.head) == (97, 4, "none")
    assert (recipe.image.frame.mode, recipe.image.frame.scale, recipe.image.size) == ("pad", 256, 224)
    assert recipe.data.augment == Augment(shift=True)
    assert recipe.zero_shot == ZeroShotSettings(ensemble="best", standardise=True)
    # The sum of both directions of both losses, where ours are means.
    assert [(t.similarity, t.weight, t.scale.init, t.scale.learned) for t in recipe.terms] == [
        ("cosine", 2.0, 10.0, False),
        ("attended", 2.0, 10.0, False),
    ]


@pytest.mark.parametrize(
    ("recipe", "argument", "near"), [("filip", "b23", "b32"), ("wukong", "swin", "swin_l"), ("gloria", "resnet", "r")]
)
def test_an_unknown_size_or_match_is_named_with_those_that_are(recipe, argument, near):
    with pytest.raises(UserError, match=f"unknown towers '{argument}'.*{near}.*this recipe knows laptop, "):
        getattr(recipes, recipe)(towers=argument)
    with pytest.raises(UserError, match="unknown match 'token' .did you mean 'tokens'.*reduced, tokens, global"):
        recipes.wukong(match="token")
