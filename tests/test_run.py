import json
from dataclasses import replace

import pytest
from PIL import Image

from tiny import tiny, write_photos
from unicl.config import read_yaml
from unicl.data.sources import load_all
from unicl.errors import UserError
from unicl.recipes import itl
from unicl.run import Job, classes_of, default_weights, read_job, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("run"), each=4)


def job(data, name="clip", **more):
    return Job(recipe=tiny(name, steps=2), data=data, **more)


def test_the_run_folder_holds_the_whole_configuration_and_reads_back(data, tmp_path):
    one = job(data)
    train(one, tmp_path / "run")
    content = read_yaml(tmp_path / "run" / "config.yaml")
    assert content["made_with"]["torch"]
    assert read_job(tmp_path / "run") == one


def test_a_folder_with_a_run_is_not_overwritten(data, tmp_path):
    train(job(data), tmp_path / "run")
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        train(job(data), tmp_path / "run")


def test_resuming_with_another_configuration_names_the_fields(data, tmp_path):
    train(job(data), tmp_path / "run")
    other = job(data)
    other = replace(other, recipe=replace(other.recipe, optim=replace(other.recipe.optim, lr=0.5)))
    with pytest.raises(UserError, match=r"recipe\.optim\.lr was 0\.002, now 0\.5"):
        train(other, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_run_may_be_made_longer(data, tmp_path):
    train(job(data), tmp_path / "run")
    longer = job(data)
    longer = replace(longer, recipe=replace(longer.recipe, fit=replace(longer.recipe.fit, steps=3)))
    assert train(longer, tmp_path / "run", resume=True).step == 3


@pytest.mark.slow
def test_how_a_step_is_computed_may_change_when_a_run_goes_on(data, tmp_path):
    train(job(data), tmp_path / "run")
    other = job(data)
    compute = replace(other.recipe.compute, channels_last=False, keep_mb=1)
    longer = replace(other.recipe, compute=compute, fit=replace(other.recipe.fit, steps=3))
    assert train(replace(other, recipe=longer), tmp_path / "run", resume=True).step == 3


@pytest.mark.parametrize(
    ("states", "weights"), [pytest.param("bf16", "fp32", marks=pytest.mark.slow), ("bf16", "bf16")]
)
def test_a_run_with_fewer_bits_goes_on_bit_for_bit(data, tmp_path, states, weights):
    def long(steps):
        one = job(data)
        optim = replace(one.recipe.optim, states=states, weights=weights)
        fit = replace(one.recipe.fit, steps=steps, save_every=2, average=0.9, precision="bf16")
        return replace(one, recipe=replace(one.recipe, optim=replace(optim, warmup=0, final=1.0), fit=fit))

    train(long(4), tmp_path / "straight")
    train(long(2), tmp_path / "stopped")
    train(long(4), tmp_path / "stopped", resume=True)
    last = "checkpoints/step-00000004/model.safetensors"
    straight, stopped = ((tmp_path / run / last).read_bytes() for run in ("straight", "stopped"))
    assert straight == stopped


def test_a_recipe_that_needs_labels_says_what_the_data_has(data, tmp_path):
    with pytest.raises(
        UserError, match=r"'cross_entropy' needs labels, but captions\.csv has .*captions.*--recipe clip"
    ):
        train(job(data[1:], name="cross_entropy"), tmp_path / "run")


def test_pictures_that_nothing_is_said_of_cannot_train(tmp_path):
    (tmp_path / "pile").mkdir()
    for k in range(3):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / "pile" / f"{k}.png")
    with pytest.raises(UserError, match=r"needs captions or labels.*neither"):
        train(job((str(tmp_path / "pile"),)), tmp_path / "run")


def test_one_class_alone_is_refused(tmp_path):
    (tmp_path / "p" / "only").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "p" / "only" / "1.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "p" / "only" / "2.png")
    with pytest.raises(UserError, match="one class alone teaches nothing"):
        train(job((str(tmp_path / "p"),), name="unicl"), tmp_path / "run")


def test_too_many_unreadable_pictures_end_the_run_with_their_names(tmp_path):
    data = write_photos(tmp_path, each=3)
    for name in ("red/0.png", "blue/1.png"):
        (tmp_path / "photos" / name).write_bytes(b"broken")
    with pytest.raises(UserError, match=r"--max-bad 0"):
        train(job(data[:1], max_bad=0), tmp_path / "run")
    train(job(data[:1], max_bad=2), tmp_path / "fine")
    listed = (tmp_path / "fine" / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in listed} <= {"photos/red/0.png", "photos/blue/1.png"}


def test_class_names_of_a_file_are_what_the_texts_say(data, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"red": "scarlet|红色", "green": "green", "blue": "blue"}), encoding="utf-8")
    train(job(data[:1], name="unicl", class_names=str(names)), tmp_path / "run")
    vocabulary = (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    assert "scar" in vocabulary
    assert "红" in vocabulary


def test_classes_are_ordered_by_namespace_and_label(data):
    sources = load_all([data[0], f"{data[0]}?namespace=other"])
    assert [c.label for c in classes_of(sources)] == ["blue", "green", "red"] * 2


def test_automatic_weights_are_those_of_the_installed_package_or_random():
    assert default_weights(itl()).image.weights == "package:efficientnet_lite0"
    other = replace(itl(), image=replace(itl().image, name="resnet18"))
    assert default_weights(other).image.weights == "random"


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="holds no run to resume"):
        read_job(tmp_path)


@pytest.mark.parametrize("name", ["filip", "wukong", "gloria"])
@pytest.mark.parametrize("side", ["image", "text"])
def test_a_recipe_that_needs_parts_is_refused_on_a_tower_without_any_before_anything_is_written(
    data, tmp_path, name, side
):
    one = job(data, name)
    tower = getattr(one.recipe, side)
    pool = "default" if tower.pool == "parts" else tower.pool
    recipe = replace(one.recipe, **{side: replace(tower, parts=None, pool=pool)})
    with pytest.raises(UserError, match=f"{name!r} compares parts.*its {side} tower gives none; leave {side}.parts"):
        train(replace(one, recipe=recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_parts_that_a_tower_cannot_give_are_refused_and_the_folder_can_be_used_again(data, tmp_path):
    one = job(data, "gloria")
    image = replace(one.recipe.image, parts=replace(one.recipe.image.parts, stage=99))
    with pytest.raises(UserError, match="has the maps 0 to .* come from 99; choose one of these"):
        train(replace(one, recipe=replace(one.recipe, image=image)), tmp_path / "run")
    assert train(one, tmp_path / "run").step == 2


SIZES = [(40, 40), (1, 1), (900, 10), (10, 900), (37, 53), (5, 5), (64, 33)]


@pytest.mark.parametrize("name", ["filip", "wukong", "gloria"])
def test_pictures_of_any_size_and_captions_that_say_nothing_are_trained_on(tmp_path, name):
    captions = ["a red dog", "", "   ", "<pad>", "[PAD] [PAD]", "...", "x"]
    rows = [f"{k}.png,{caption}" for k, caption in enumerate(captions)]
    for k, size in enumerate(SIZES):
        Image.new("RGB", size, (20 * k, 100, 50)).save(tmp_path / f"{k}.png")
    (tmp_path / "odd.csv").write_text("\n".join(["file,title", *rows]) + "\n", encoding="utf-8")
    [source] = load_all([str(tmp_path / "odd.csv")])
    assert [bool(sample.captions) for sample in source.samples] == [True, False, False, True, True, True, True]
    assert train(job((str(tmp_path / "odd.csv"),), name), tmp_path / "run").step == 2
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["loss"] > 0 for line in lines)
