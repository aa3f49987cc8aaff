"""What an export may be asked to be."""

import sys

import pytest

from unicl.errors import UserError
from unicl.use.export.settings import ExportSettings, require


def test_a_missing_package_is_told_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime; install with: pip install 'unicl\[export\]'"):
        ExportSettings().check("onnx")
    ExportSettings().check("torch")


def test_all_missing_packages_are_named_at_once(monkeypatch):
    for name in ("onnx", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="an export to openvino needs onnx, openvino;"):
        ExportSettings().check("openvino")
    require("onnxruntime", doing="nothing else")


@pytest.mark.parametrize(
    ("settings", "to", "said"),
    [
        (ExportSettings(dtype="int8"), "torch", "choose onnx or openvino"),
        (ExportSettings(opset=17), "onnx", "opset 17 is too old"),
        (ExportSettings(pictures=1), "onnx", "at least 2"),
    ],
)
def test_what_a_target_cannot_be_is_an_error(settings, to, said):
    with pytest.raises(UserError, match=said):
        settings.check(to)
