"""An export in the place of its model."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from unicl import published
from unicl.errors import UserError
from unicl.use.classify import classify
from unicl.use.export.runtime import is_export, load_export, narrowed, read_config
from unicl.use.search import search
from unicl.use.vectors import fingerprint

TEXTS = ["a", "a red flower", "a temple by the water " * 9, "红花", "water"] * 7


@pytest.fixture(scope="module")
def loaded(float_export):
    return load_export(float_export)


def test_an_export_embeds_as_its_model_does(model, loaded):
    images = torch.randint(0, 256, (35, 3, 32, 32), dtype=torch.uint8)
    for view in ("instances", "classes"):
        assert torch.allclose(loaded.embed_image(images, view=view), model.embed_image(images, view=view), atol=1e-5)
        assert torch.allclose(loaded.embed_text(TEXTS, view=view), model.embed_text(TEXTS, view=view), atol=1e-5)
    assert torch.allclose(loaded.image_features(images), model.image_features(images), atol=1e-4)
    assert loaded.scale("classes") == model.scale("classes")
    names = ("flower", "temple")
    ours, theirs = (m.classifier(names, templates=("a {}", "the {}.")) for m in (loaded, model))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_searching_and_classifying_with_an_export_finds_what_the_model_finds(model, loaded, photos, tmp_path):
    ours, theirs = (search(m, [photos], query="a red flower", cache=tmp_path) for m in (loaded, model))
    assert [hit.id for hit in ours.hits] == [hit.id for hit in theirs.hits]
    ours, theirs = (classify(m, [photos], names=["flower", "temple"]) for m in (loaded, model))
    assert [row.answers[0][0] for row in ours.rows] == [row.answers[0][0] for row in theirs.rows]


def test_one_function_loads_models_and_exports(float_export, loaded):
    found = published.load(float_export)
    assert torch.equal(found.embed_text(["a"]), loaded.embed_text(["a"]))


@pytest.mark.slow
def test_vectors_of_two_exports_are_told_apart(model, loaded, float_export, int8_export):
    marks = {fingerprint(model), fingerprint(loaded), fingerprint(load_export(int8_export))}
    assert len(marks) == 3
    assert fingerprint(load_export(float_export)) == fingerprint(loaded)


def test_pixels_that_are_no_whole_numbers_are_rounded(loaded):
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded.image(images.float() + 0.4).whole, loaded.image(images).whole)


def test_nothing_gives_no_rows(loaded):
    assert loaded.image(torch.zeros(0, 3, 32, 32, dtype=torch.uint8)).whole.shape == (0, 16)
    nothing = torch.zeros(0, 4, dtype=torch.int64)
    assert loaded.text(nothing, nothing.bool()).whole.shape == (0, 16)


def test_a_text_of_one_token_is_read(model, loaded):
    tokens, mask = torch.tensor([[5], [6]]), torch.ones(2, 1, dtype=torch.bool)
    with torch.no_grad():
        assert torch.allclose(loaded.text(tokens, mask).whole, model.text(tokens, mask).whole, atol=1e-5)


def test_what_an_export_cannot_read_is_told(loaded, tmp_path):
    with pytest.raises(UserError, match=r"reads images of shape \(N, 3, S, S\), not \(2, 5\)"):
        loaded.image(torch.zeros(2, 5))
    with pytest.raises(UserError, match="texts of 17 tokens came, but this export reads at most 16"):
        loaded.text(torch.ones(1, 17, dtype=torch.int64), torch.ones(1, 17, dtype=torch.bool))
    with pytest.raises(UserError, match="cannot be saved as a model"):
        loaded.text.save_config(tmp_path)


def test_only_a_folder_with_an_export_block_is_an_export(float_export, model, tmp_path):
    assert is_export(float_export)
    model.save(tmp_path / "model")
    assert not is_export(tmp_path / "model")
    assert not is_export(tmp_path / "nowhere")


def test_a_damaged_export_is_told(float_export, tmp_path):
    place = tmp_path / "export"
    shutil.copytree(float_export, place)
    (place / "image.onnx").write_bytes(b"cut off")
    with pytest.raises(UserError, match="image.onnx cannot be run by onnx"):
        load_export(place)
    (place / "text.onnx").unlink()
    with pytest.raises(UserError, match="lacks text.onnx"):
        load_export(place)
    content = json.loads((place / "config.json").read_text())
    content["export"]["kind"] = "abacus"
    (place / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="not the configuration of an export"):
        read_config(place)


def test_a_model_of_one_view_is_as_wide_as_the_view(model):
    found = narrowed(model.settings, dims=8)
    assert found.width == 8
    assert found.views == {"instances": None, "classes": None}
    assert narrowed(model.settings, dims=None) == replace(model.settings)
