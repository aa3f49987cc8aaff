"""An ONNX file as OpenVINO's pair of files."""

from pathlib import Path

from unicl.errors import UserError


def write_openvino(source: Path, out: Path, *, half: bool) -> tuple[str, ...]:
    """Convert ``source`` into ``out`` (``.xml``) and its ``.bin``; ``half`` stores weights in 16 bits.

    Raises `UserError` for an operation that OpenVINO does not read.
    """
    import openvino

    try:
        model = openvino.convert_model(str(source))
        openvino.save_model(model, str(out), compress_to_fp16=half)
    except Exception as error:  # its front ends have kinds of their own
        raise UserError(f"OpenVINO cannot read the ONNX graph {source.name}: {str(error).strip()}", code=1) from error
    return out.name, out.with_suffix(".bin").name
