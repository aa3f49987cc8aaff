"""ONNX files: checked, with dynamic sizes, and with weights beside them where they are large."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from unicl.errors import UserError
from unicl.use.export.graphs import Graph, image_graph
from unicl.use.export.onnx import join, write_onnx
from unicl.use.export.settings import ExportSettings


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_weights_that_are_too_large_for_the_file_lie_beside_it(model, tmp_path):
    graph = image_graph(model, ExportSettings())
    files = write_onnx(graph, tmp_path / "image.onnx", opset=18, notes={"view": "both"}, largest=1000)
    assert files == ("image.onnx", "image.onnx.data")
    assert (tmp_path / "image.onnx.data").stat().st_size > 5 * (tmp_path / "image.onnx").stat().st_size > 0
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    found = session(tmp_path / "image.onnx").run(["image_embedding"], {"pixels": images.numpy()})[0]
    assert np.allclose(found, model.embed_image(images).numpy(), atol=1e-5)


def test_a_file_says_what_it_is(float_export):
    model = onnx.load(str(float_export / "image.onnx"))
    assert not any(word in (float_export / "image.onnx").read_bytes() for word in (b"site-packages", b"src/unicl"))
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert (notes["view"], notes["normalised"], notes["size"]) == ("both", "True", "32")
    assert model.opset_import[0].version == 18
    assert [i.name for i in model.graph.input] == ["pixels"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert [o.name for o in model.graph.output] == ["image_embedding", "image_classes", "image_features"]


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_any_number_of_texts_of_any_length_goes_through(float_export, model, rows):
    run = session(float_export / "text.onnx")
    for texts in (["a"], ["a red flower by the water and more and more words"]):
        tokens, mask = model.tokenizer(texts * rows)
        found = run.run(["text_embedding"], {"tokens": tokens.numpy(), "mask": mask.numpy()})[0]
        assert np.allclose(found, model.embed_text(texts * rows).numpy(), atol=1e-5)


def test_a_joint_file_has_large_weights_beside_it_too(float_export, model, tmp_path):
    towers = (float_export / "image.onnx", float_export / "text.onnx")
    files = join(*towers, tmp_path / "joint.onnx", scale=2.0, bias=1.0, notes={}, largest=1000)
    assert files == ("joint.onnx", "joint.onnx.data")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    tokens, mask = model.tokenizer(["a red flower", "a", "water"])
    feeds = {"pixels": images.numpy(), "tokens": tokens.numpy(), "mask": mask.numpy()}
    scores = session(tmp_path / "joint.onnx").run(["scores"], feeds)[0]
    assert np.allclose(scores, 2 * model.similarity(images, ["a red flower", "a", "water"]).numpy() + 1, atol=1e-5)


def test_an_operation_that_onnx_has_not_is_told(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real

    graph = Graph(module=Odd(), inputs={"x": torch.eye(3)[None].repeat(2, 1, 1)}, varying={}, outputs=("y",))
    graph = Graph(module=Odd(), inputs=graph.inputs, varying={"x": {0: "rows"}}, outputs=("y",))
    with pytest.raises(UserError, match="cannot be written as ONNX"):
        write_onnx(graph, tmp_path / "odd.onnx", opset=18, notes={})
