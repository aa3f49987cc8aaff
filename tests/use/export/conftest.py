"""One export of each kind that several tests look at."""

from pathlib import Path

import pytest

from unicl.use.export.run import export
from unicl.use.export.settings import ExportSettings


@pytest.fixture(scope="session")
def float_export(model, tmp_path_factory) -> Path:
    """The tiny nested model as ONNX, float32, with a joint graph."""
    out = tmp_path_factory.mktemp("export") / "float"
    export(model, out, settings=ExportSettings(joint=True, pictures=8))
    return out


@pytest.fixture(scope="session")
def int8_export(model, tmp_path_factory) -> Path:
    """The same as ONNX in 8 bits."""
    out = tmp_path_factory.mktemp("export") / "int8"
    export(model, out, settings=ExportSettings(dtype="int8", pictures=8))
    return out
