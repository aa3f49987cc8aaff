"""Model cards: what a run was, what it learnt from, how good it is; unknown where nothing is known."""

import json

import pytest
import yaml

from tiny import tiny, write_photos
from unicl.model import load_model
from unicl.published import publish
from unicl.run import Job, train
from unicl.use.export.card import model_card, write_card

USAGE = "import unicl"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three steps, with a licence beside one source, and an evaluation."""
    folder = tmp_path_factory.mktemp("cards")
    photos, captions = write_photos(folder)
    (folder / "photos" / "LICENCE.txt").write_text("\nCC BY 4.0 | by the painters\n")
    train(Job(recipe=tiny("itl", steps=3), data=(photos, captions)), folder / "run", device="cpu")
    score = {"value": 0.75, "low": 0.5, "high": 0.9, "n": 24}
    report = {"title": "photos", "level": 0.95, "results": {"zeroshot": {"scores": {"zeroshot/top1": score}}}}
    (folder / "run" / "evaluation.json").write_text(json.dumps(report))
    return folder / "run"


@pytest.fixture(scope="module")
def model(run):
    return publish(load_model(run), view="classes")


def card(model, home, **more):
    return model_card(model, home=home, library="unicl", form="unicl model folder", usage=USAGE, **more)


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_is_the_hubs(model, run):
    found = front(card(model, run))
    assert found["library_name"] == "unicl"
    assert found["pipeline_tag"] == "zero-shot-image-classification"
    assert found["license"] == "unknown"
    assert "unicl model folder" in found["tags"]


def test_a_card_counts_the_data_and_names_their_licences(model, run):
    text = card(model, run)
    assert "photos (class folder): 24 samples, 0 with captions, 24 with labels of 3 classes" in text
    assert "captions.csv" in text or "captions (csv): 24 samples, 24 with captions" in text
    assert "see LICENCE.txt beside the data (CC BY 4.0 \\| by the painters)" in text


def test_a_card_has_the_recipe_the_towers_and_the_numbers(model, run):
    text = card(model, run, view="classes", notes=("the padding is theirs",))
    assert "made with: the recipe itl" in text
    assert "vectors for classes, of 16 dimensions" in text
    assert "image tower test_vit, " in text
    assert "| zeroshot/top1 | 0.75 | 0.5 to 0.9 | 24 |" in text
    assert "after 3 steps" in text
    assert "* the padding is theirs" in text
    assert "tokenizer: train, " in text


def test_a_checkpoint_inside_a_run_is_told_of_like_the_run(model, run):
    inside = next((run / "checkpoints").iterdir())
    assert card(model, inside) == card(model, run)


def test_no_folder_of_this_machine_stands_in_a_card(model, run):
    assert str(run.parent) not in card(model, run)


def test_data_that_are_gone_are_named_without_numbers(model, run, tmp_path):
    content = yaml.safe_load((run / "config.yaml").read_text())
    content |= {
        "data": ["/nowhere/pictures?label=kind", "https://host.example/shards/{00..09}.tar"],
        "val": ["/a/b.csv"],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    text = card(model, tmp_path)
    assert "* pictures (not at hand when this card was written)" in text
    assert "* pictures: unknown" in text
    assert "held out for evaluation: b.csv" in text
    assert "nowhere" not in text


@pytest.mark.parametrize("home", [None, "empty"])
def test_without_a_run_a_card_says_what_is_unknown(home, model, tmp_path):
    text = card(model, tmp_path if home else None)
    assert "Unknown: the weights came without the folder of their run." in text
    assert "None were found" in text
    assert "mean 0.5" in text or "deviation" in text


def test_broken_files_of_a_run_do_not_stop_a_card(model, tmp_path):
    (tmp_path / "config.yaml").write_text("recipe: [")
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    assert "The loss was 1.5 after 2 steps." in card(model, tmp_path)


def test_a_card_is_written_as_readme(model, run, tmp_path):
    path = write_card(tmp_path, model=model, home=run, library="unicl", form="x", usage=USAGE)
    assert path == tmp_path / "README.md"
    assert path.read_text(encoding="utf-8").startswith("---\nlibrary_name")
