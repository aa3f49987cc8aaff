"""Programs of torch.export."""

import zipfile

import torch

from unicl.use.export.graphs import image_graph
from unicl.use.export.program import write_program
from unicl.use.export.settings import ExportSettings


def test_a_program_runs_from_its_file_alone(model, tmp_path):
    assert write_program(image_graph(model, ExportSettings()), tmp_path / "image.pt2") == ("image.pt2",)
    with zipfile.ZipFile(tmp_path / "image.pt2") as archive:
        assert not any(b"site-packages" in archive.read(name) for name in archive.namelist())
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        found = torch.export.load(str(tmp_path / "image.pt2")).module()(images)
    assert torch.allclose(found[0], model.embed_image(images), atol=1e-6)
