"""What a step computes and what the device could: the two sides of model FLOP utilisation (MFU)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from unicl.train.step import Precision

PEAKS: Final = MappingProxyType(
    {
        "B200": (2250.0, 1125.0),
        "GH200": (989.0, 494.0),
        "H200": (989.0, 494.0),
        "H100 PCIe": (756.0, 378.0),
        "H100": (989.0, 494.0),
        "H800": (989.0, 494.0),
        "A100": (312.0, 156.0),
        "A800": (312.0, 156.0),
        "A40": (149.7, 74.8),
        "A30": (165.0, 82.0),
        "A10": (125.0, 62.5),
        "L40S": (362.0, 183.0),
        "L40": (181.0, 90.5),
        "L4": (121.0, 60.0),
        "RTX 4090": (165.2, 82.6),
        "RTX 3090": (71.0, 35.6),
    }
)
"""TFLOP/s of dense products in bfloat16 and in TF32, from the makers' data sheets, by a part of the device's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """FLOP/s that a device can do, and where that is from."""

    flops: float
    source: str


def counter() -> FlopCounterMode:
    """A context that counts the FLOPs of products, convolutions and attention in it; some are rounded otherwise."""
    # torch counts the gradient of a grouped convolution's weights as if it had one group.
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def peak(device: torch.device, precision: Precision) -> Peak:
    """The data sheet's number for a known GPU in bfloat16 or TF32, else what a product of matrices reaches here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        exact = precision == "fp32" and torch.get_float32_matmul_precision() == "highest"
        known = next((key for key in PEAKS if key in name), None)
        if known is not None and not exact:
            kind = "bf16" if precision == "bf16" else "TF32"
            return Peak(flops=PEAKS[known][kind == "TF32"] * 1e12, source=f"data sheet of {known}, {kind}")
    return Peak(flops=_measured(device, precision), source=f"measured with a matrix product, {precision}")


def _measured(device: torch.device, precision: Precision) -> float:
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = min(_seconds(matrix) for _ in range(5))
    return float(2 * size**3 / best)


def _seconds(matrix: torch.Tensor) -> float:
    began = time.perf_counter()
    product = matrix @ matrix
    float(product[0, 0])  # waits for the device
    return time.perf_counter() - began


def _convolution_backward(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    forward: int = conv_flop_count(list(x_shape), list(w_shape), list(grad_shape), transposed=transposed)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))
