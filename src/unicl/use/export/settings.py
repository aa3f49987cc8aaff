"""What an export is asked to be, and what stands in its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Literal

from unicl.errors import UserError
from unicl.model import View

Target = Literal["onnx", "openvino", "torch"]
Precision = Literal["fp32", "fp16", "int8"]
Views = Literal["instances", "classes", "both"]
Pixels = Literal["uint8", "float32"]

OPSET: Final = 18
"""The oldest operator set of ONNX that torch's exporter writes without a conversion: read by the most programs."""
JOINT: Final = ("image_embedding", "text_embedding", "scores")
"""What a joint graph gives."""
NEEDS: Final[Mapping[Target, tuple[str, ...]]] = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("onnx", "onnxruntime", "onnxscript", "openvino"),
    "torch": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What graphs give and how they compute.

    * ``dtype``: "fp32"; "fp16", weights of half the size; "int8", products with weights in 8 bits.
    * ``view``: which vectors an image or a text gives; "both" adds the prefix of a nested model to the whole vector.
    * ``normalise``: unit vectors, or the head's output as it is.
    * ``pixels``: the type of the images that a graph reads, 0 to 255 either way.
    * ``opset``: of ONNX; ``joint``: besides the towers, one graph from images and texts to both vectors and scores.
    * ``pictures``: how many are looked at for the parity report, and how many for the ranges of int8.
    """

    dtype: Precision = "fp32"
    view: Views = "both"
    normalise: bool = True
    pixels: Pixels = "uint8"
    opset: int = OPSET
    joint: bool = False
    pictures: int = 64

    def check(self, to: Target) -> None:
        """Raise `UserError` for what the target cannot be, or a package that is missing."""
        if self.dtype == "int8" and to == "torch":
            raise UserError("int8 runs in onnxruntime or OpenVINO, not in torch; choose onnx or openvino, or fp16")
        if self.opset < OPSET:
            raise UserError(f"opset {self.opset} is too old: graphs are written for opset {OPSET} or newer")
        if self.pictures < 2:
            raise UserError(f"pictures={self.pictures}: at least 2 are needed to compare the export with the model")
        require(*NEEDS[to], doing=f"an export to {to}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportBlock:
    """What config.json says of an export, under "export": all that its runtime needs besides the model's settings.

    ``files`` are by graph (image, text, joint), ``sizes`` in bytes and ``hashes`` (SHA-256 of a graph and its weights)
    likewise; ``features`` are the towers' widths before their heads; ``mean`` and ``std`` are inside the graphs.
    """

    kind: Target
    dtype: Precision
    view: Views
    normalised: bool
    pixels: Pixels
    opset: int | None
    files: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, int]
    hashes: Mapping[str, str]
    features: Mapping[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: Mapping[View, float]
    made_with: Mapping[str, str]
    format: int = 1


def require(*packages: str, doing: str) -> None:
    """Raise `UserError` with the line that installs what is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"{doing} needs {', '.join(missing)}; install with: pip install 'unicl[export]'")
