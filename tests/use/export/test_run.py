"""An export from model to checked folder, whole or not at all."""

import json
from dataclasses import replace

import pytest
import torch

from unicl.data.sources import load_all
from unicl.errors import UserError
from unicl.use.export.parity import BOUNDS
from unicl.use.export.run import export
from unicl.use.export.runtime import load_export
from unicl.use.export.settings import ExportSettings

FEW = ExportSettings(pictures=4)


def test_a_folder_holds_graphs_settings_tokenizer_and_report(float_export):
    names = {path.name for path in float_export.iterdir()}
    assert names == {
        *("config.json", "image.onnx", "text.onnx", "joint.onnx", "objective.safetensors", "tokenizer"),
        *("parity.json", "parity.md"),
    }
    block = json.loads((float_export / "config.json").read_text())["export"]
    assert (block["kind"], block["dtype"], block["normalised"], block["opset"]) == ("onnx", "fp32", True, 18)
    assert block["sizes"]["image"] == (float_export / "image.onnx").stat().st_size
    report = json.loads((float_export / "parity.json").read_text())
    assert [row["graph"] for row in report["rows"]] == ["image", "text", "joint"]
    assert not list(float_export.parent.glob("*.part"))


def test_int8_says_what_it_started_from_and_what_it_became(int8_export):
    report = json.loads((int8_export / "parity.json").read_text())
    kinds = [(row["graph"], row["dtype"], row["final"]) for row in report["rows"]]
    assert kinds == [("image", "fp32", False), ("text", "fp32", False), ("image", "int8", True), ("text", "int8", True)]
    assert 0.99 < report["rows"][2]["cosine"] < 0.999999
    assert any("made-up pictures" in note for note in report["notes"])
    assert not (int8_export / "fp32").exists()


@pytest.mark.slow
def test_out_of_bounds_fails_with_the_report_and_leaves_nothing(model, tmp_path):
    strict = replace(BOUNDS["fp32"], cosine=1.1)
    with pytest.raises(UserError, match="(?s)Parity of this export.*out of bounds, and nothing was written") as caught:
        export(model, tmp_path / "out", to="torch", settings=FEW, bounds=strict)
    assert caught.value.code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_program_of_torch_loads_back(model, tmp_path, photos, dtype):
    said = []
    settings = replace(FEW, dtype=dtype, joint=True)
    report = export(
        model, tmp_path / "out", to="torch", settings=settings, sources=load_all([str(photos)]), say=said.append
    )
    assert report.failures == ()
    assert "4 pictures of photos" in report.sample
    assert said[0].startswith("exporting")
    assert str(tmp_path / "out") in said[-1]
    texts = ["a red flower", "a"]
    assert torch.allclose(load_export(tmp_path / "out").embed_text(texts), model.embed_text(texts), atol=1e-2)


@pytest.mark.slow
def test_the_class_view_goes_out_as_a_narrower_model(model, tmp_path):
    settings = replace(FEW, view="classes", normalise=False, pixels="float32")
    export(model, tmp_path / "out", to="torch", settings=settings)
    found = load_export(tmp_path / "out")
    assert found.settings.width == 8
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    for view in ("instances", "classes"):
        assert torch.allclose(
            found.embed_image(images, view=view), model.embed_image(images, view="classes"), atol=1e-6
        )


def test_a_classifier_goes_out_with_its_classes(classifier, tmp_path):
    export(classifier, tmp_path / "out", to="torch", settings=FEW)
    found = load_export(tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer").exists()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    names = ("flower", "sky")
    scores = [m.embed_image(images, view="classes") @ m.classifier(names, templates=()).T for m in (found, classifier)]
    assert torch.allclose(*scores, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "cosine"), [("fp32", 0.99999), ("int8", 0.98)])
def test_openvino_gives_the_numbers_of_the_model(model, tmp_path, dtype, cosine):
    # One layer of 32 dimensions averages the rounding of 8 bits over little.
    bounds = replace(BOUNDS[dtype], cosine=cosine)
    report = export(model, tmp_path / "out", to="openvino", settings=replace(FEW, dtype=dtype), bounds=bounds)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"image.xml", "image.bin", "text.xml", "text.bin"} <= names
    assert not any(name.endswith(".onnx") for name in names)
    assert [row.dtype for row in report.rows][-2:] == [dtype, dtype]
    texts = ["a red flower", "a"]
    found = load_export(tmp_path / "out").embed_text(texts)
    assert float((found * model.embed_text(texts)).sum(1).min()) > cosine


@pytest.mark.slow
def test_onnx_in_half_precision_is_half_as_large(model, tmp_path, float_export):
    export(model, tmp_path / "out", settings=replace(FEW, dtype="fp16"))
    assert (tmp_path / "out" / "image.onnx").stat().st_size < 0.75 * (float_export / "image.onnx").stat().st_size


def test_mistakes_are_told_before_any_work(model, classifier, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        export(model, tmp_path / "full", settings=FEW)
    assert (tmp_path / "full" / "mine.txt").exists()
    with pytest.raises(UserError, match="a joint graph needs a text tower"):
        export(classifier, tmp_path / "out", settings=replace(FEW, joint=True))
    with pytest.raises(UserError, match="int8 runs in onnxruntime or OpenVINO"):
        export(model, tmp_path / "out", to="torch", settings=replace(FEW, dtype="int8"))
