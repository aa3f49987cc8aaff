"""ONNX to OpenVINO."""

import numpy as np
import openvino
import pytest
import torch

from unicl.errors import UserError
from unicl.use.export.openvino import write_openvino


@pytest.mark.slow
def test_half_the_bytes_hold_the_same_graph(float_export, model, tmp_path):
    sizes = []
    for half in (False, True):
        files = write_openvino(float_export / "image.onnx", tmp_path / f"{half}.xml", half=half)
        assert files == (f"{half}.xml", f"{half}.bin")
        sizes.append((tmp_path / files[1]).stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    found = openvino.Core().compile_model(str(tmp_path / "False.xml"), "CPU")({"pixels": images.numpy()})
    assert np.allclose(found["image_embedding"], model.embed_image(images).numpy(), atol=2e-2)


def test_a_file_that_is_no_graph_is_told(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="OpenVINO cannot read the ONNX graph x.onnx"):
        write_openvino(tmp_path / "x.onnx", tmp_path / "x.xml", half=False)
