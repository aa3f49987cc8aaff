"""8-bit products: an ONNX graph whose matrices of weights are int8."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

Feed = Mapping[str, np.ndarray[Any, Any]]
PRODUCTS: Final = ("MatMul", "Gemm")
FIRST: Final = 3
_COPIES: Final = ("Cast", "Identity")


def quantise_dynamic(source: Path, out: Path, *, keep: str, outside: bool = False) -> None:
    """Weights as int8; the ranges of what meets them are taken anew at each call (best for texts of any length).

    ``keep`` is an output: what is computed from it, the head, stays in float. ``outside``: weights in a second file.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            source,
            out,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_exclude=_after(source, keep),
            weight_type=QuantType.QInt8,
            per_channel=True,
            use_external_data_format=outside,
            extra_options={"MatMulConstBOnly": True},
        )


def quantise_static(
    source: Path, out: Path, *, feeds: Sequence[Feed], keep: str, convolutions: bool, outside: bool = False
) -> None:
    """Weights as int8, and fixed ranges for what meets them: the least and the largest values seen on ``feeds``.

    A row's numbers then do not depend on what it is computed with. ``keep`` as in `quantise_dynamic`. With
    ``convolutions``, those of a convolutional tower are in 8 bits too, but for the `FIRST` and the depthwise ones: of
    EfficientNet-Lite0, the least cosine is then .996, and .72 with all that onnxruntime would quantise.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    kinds = [*PRODUCTS, "Conv"] if convolutions else list(PRODUCTS)
    with _quiet():
        quantize_static(
            source,
            out,
            _Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=kinds,
            nodes_to_exclude=[*_after(source, keep), *_delicate(source)],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            per_channel=True,
            use_external_data_format=outside,
            # Sums and norms are taken of float, as products give it.
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": kinds},
        )


class _Feeds:
    """Feeds one at a time, as the calibration of onnxruntime asks for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> Feed | None:
        """The next one, or None at the end."""
        return next(self._left, None)


def _after(source: Path, name: str) -> list[str]:
    """The nodes that are computed from the value of an output."""
    import onnx

    nodes = onnx.load(str(source), load_external_data=False).graph.node
    # The output may be a copy of the value that the rest of the graph goes on from.
    copies = [node for node in nodes if name in node.output and node.op_type in _COPIES]
    reached = {name, *(value for node in copies for value in node.input)}
    after = []
    for node in nodes:  # they stand in the order of their computing
        if reached & set(node.input) and name not in node.output:
            reached |= set(node.output)
            # The quantiser makes a MatMul and an Add of a Gemm first.
            after += [node.name, f"{node.name}_MatMul"] if node.op_type == "Gemm" else [node.name]
    return after


def _delicate(source: Path) -> list[str]:
    """The convolutions that have few numbers to average an error over."""
    import onnx

    nodes = [node for node in onnx.load(str(source), load_external_data=False).graph.node if node.op_type == "Conv"]
    depthwise = [node for node in nodes[FIRST:] if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    return [node.name for node in (*nodes[:FIRST], *depthwise)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the hints that onnxruntime logs for graphs that were not prepared; these were."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
