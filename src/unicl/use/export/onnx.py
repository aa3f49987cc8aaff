"""A graph as an ONNX file, and two of them joined into one."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from unicl.errors import UserError
from unicl.use.export.graphs import Graph

LARGEST: Final = 1_800_000_000
"""Bytes of weights that still go into the ``.onnx`` file itself, which may not reach 2 GB; others lie beside it."""


def write_onnx(
    graph: Graph, path: Path, *, opset: int, notes: Mapping[str, str], largest: int = LARGEST
) -> tuple[str, ...]:
    """Write a checked ONNX file with ``notes`` as its metadata, and return the names of all files it consists of.

    Weights of more than ``largest`` bytes go into a second file, ``NAME.onnx.data``. Raises `UserError` if the tower
    has an operation that ONNX has not.
    """
    import onnx
    import torch

    program = graph.traced()
    with _quiet():
        try:
            written = torch.onnx.export(
                program,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # one of torch's many kinds
            raise UserError(f"this tower cannot be written as ONNX: {_first_line(error)}", code=1) from error
    assert written is not None
    outside = sum(t.numel() * t.element_size() for t in program.state_dict.values()) > largest
    written.save(str(path), external_data=outside)
    model = onnx.load(str(path), load_external_data=False)
    finish(model, path, notes=notes)
    return (path.name, f"{path.name}.data") if outside else (path.name,)


def finish(model: Any, path: Path, *, notes: Mapping[str, str]) -> None:
    """Save a model without stale shapes, with its metadata, and check it."""
    import onnx

    # Shapes noted by the exporter contradict those that quantisation infers.
    del model.graph.value_info[:]
    # The exporter notes the lines of code on its own machine that every node came from.
    for part in (model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.helper.set_model_props(model, {key: str(value) for key, value in notes.items()})
    model.producer_name = "unicl"
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))


def join(
    image: Path, text: Path, out: Path, *, scale: float, bias: float, notes: Mapping[str, str], largest: int = LARGEST
) -> tuple[str, ...]:
    """Two towers' files as one: images and texts to both vectors, and ``scale * cosine + bias`` as ``scores``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    towers = [_named_apart(onnx.load(str(path)), side) for path, side in ((image, "image"), (text, "text"))]
    graph = towers[0].graph
    graph.name = "joint"
    for field in ("node", "initializer", "input"):
        getattr(graph, field).extend(getattr(towers[1].graph, field))
    outputs = [model.graph.output[0] for model in towers]
    del graph.output[:]
    graph.output.extend([*outputs, helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["images", "texts"])])
    numbers = {"joint/scale": scale, "joint/bias": bias}
    graph.initializer.extend(numpy_helper.from_array(np.array(n, np.float32), name) for name, n in numbers.items())
    graph.node.extend(
        helper.make_node(kind, list(inputs), [output], **options)
        for kind, inputs, output, options in (
            ("LpNormalization", ("image_embedding",), "joint/image", {"axis": -1, "p": 2}),
            ("LpNormalization", ("text_embedding",), "joint/text", {"axis": -1, "p": 2}),
            ("Transpose", ("joint/text",), "joint/texts", {"perm": [1, 0]}),
            ("MatMul", ("joint/image", "joint/texts"), "joint/cosines", {}),
            ("Mul", ("joint/cosines", "joint/scale"), "joint/scaled", {}),
            ("Add", ("joint/scaled", "joint/bias"), "scores", {}),
        )
    )
    imports = {(i.domain, i.version) for model in towers for i in model.opset_import}
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in sorted(imports)],
        ir_version=max(model.ir_version for model in towers),
        functions=[function for model in towers for function in model.functions],
    )
    outside = model.ByteSize() > largest
    if outside:
        onnx.save(model, str(out), save_as_external_data=True, location=f"{out.name}.data", size_threshold=1024)
        model = onnx.load(str(out), load_external_data=False)
    finish(model, out, notes=notes)
    return (out.name, f"{out.name}.data") if outside else (out.name,)


def _named_apart(model: Any, side: str) -> Any:
    """The model with a prefix on every name inside, so that two have none in common; only its ends keep theirs."""
    from onnx import compose

    return compose.add_prefix(
        model, f"{side}/", rename_inputs=False, rename_outputs=False, rename_functions=False, inplace=True
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks, which are for those who write exporters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
