"""DICOM files to uint8 pixels: what a reading station would show of one radiograph."""

from functools import cache
from io import BytesIO
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unicl.errors import BadImage, UserError

SUFFIX: Final = ".dcm"
_MARK: Final = b"DICM"
_PREAMBLE: Final = 128
_GRAY: Final = ("MONOCHROME1", "MONOCHROME2")
_LOWEST_FIRST: Final = "MONOCHROME1"
"""The photometric interpretation in which the lowest value is white (PS3.3, section C.7.6.3.1.2)."""

Values = NDArray[np.float64]


def is_dicom(content: bytes) -> bool:
    """Whether a file begins as a DICOM file: 128 bytes of anything, then its mark (PS3.10, section 7.1)."""
    return content[_PREAMBLE : _PREAMBLE + len(_MARK)] == _MARK


def dicom_pixels(content: bytes, *, max_pixels: int) -> Tensor:
    """``(3, H, W)`` uint8 of a DICOM file with one frame, a view of ``(H, W, 3)`` memory.

    Stored values go through the modality's rescale, then through the header's own lookup table or window, or, without
    either, from their lowest to their highest (PS3.3, sections C.11.1 and C.11.2); of several the first. Values that
    only fill up the frame do not count. MONOCHROME1 is inverted; colours and palettes become RGB.
    Raises `BadImage` for a broken header, several frames or pixels that cannot be unpacked, and `UserError` if pydicom
    is missing.
    """
    read = _pydicom()
    try:
        header = read.dcmread(BytesIO(content))
        _check(header, max_pixels=max_pixels)
        values = _stored(header)
        if header.PhotometricInterpretation in _GRAY:
            values = np.repeat(_shown(values, header)[..., None], 3, axis=2)
        return torch.from_numpy(np.ascontiguousarray(_rgb(values, header))).permute(2, 0, 1)
    except BadImage:
        raise
    # A broken file makes the reader fail in any way; each of them is this image's fault.
    except Exception as error:
        raise BadImage(f"broken DICOM: {_reason(error)}") from error


@cache
def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise UserError(
            "the data has DICOM files, and pydicom, which reads them, is missing; run: pip install 'unicl[dicom]'"
        ) from error
    # A date in the wrong form says nothing about the pixels, and would be a line on the terminal for each file.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def _check(header: Any, *, max_pixels: int) -> None:
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise BadImage(f"a DICOM of {frames} frames; wanted is one picture a file: write the frames apart")
    missing = [name for name in ("Rows", "Columns", "PixelData", "PhotometricInterpretation") if name not in header]
    if missing:
        raise BadImage(f"broken DICOM: its header has no {missing[0]}")
    height, width = int(header.Rows), int(header.Columns)
    if height * width > max_pixels:
        raise BadImage(f"too large: {width} x {height} pixels, the limit is {max_pixels:,}")
    if height * width == 0:
        raise BadImage("no pixels")


def _stored(header: Any) -> Any:
    """The values of the pixels as they are stored, colours already RGB."""
    try:
        return header.pixel_array
    except RuntimeError as error:
        syntax = header.file_meta.TransferSyntaxUID
        if not syntax.is_compressed:
            raise
        raise BadImage(_packed(syntax)) from error


def _packed(syntax: Any) -> str:
    """Why pixels that are compressed in this way cannot be had."""
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return f"DICOM compressed as {syntax.name}, which pydicom cannot unpack; save it in another way"
    if decoder.is_available:
        return f"broken DICOM: its pixels, compressed as {syntax.name}, cannot be unpacked"
    # "pylibjpeg - requires pylibjpeg>=2.0 and pylibjpeg-openjpeg>=2.0"
    others = " or ".join(known.partition(" - requires ")[2] for known in decoder.missing_dependencies)
    return (
        f"DICOM compressed as {syntax.name}, which nothing installed here unpacks: run pip install 'unicl[dicom]', and "
        f"if that is not enough, install {others}"
    )


def _shown(stored: Any, header: Any) -> NDArray[np.uint8]:
    """Gray values ``(H, W)`` of 8 bits, 0 being black."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    values: Values = np.asarray(apply_modality_lut(stored, header), dtype=np.float64)
    table = header.get("VOILUTSequence")
    centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    if table:
        shares = apply_voi(values.astype(np.int64), header) / (2.0 ** int(table[0].LUTDescriptor[2]) - 1)
    elif centre is not None and width is not None and width > 0:
        shares = windowed(values, centre=centre, width=width, function=str(header.get("VOILUTFunction") or "LINEAR"))
    else:
        shares = _stretched(values, kept=_kept(stored, header))
    if header.PhotometricInterpretation == _LOWEST_FIRST:
        shares = 1 - shares
    shown: NDArray[np.uint8] = (shares.clip(0, 1) * 255).round().astype(np.uint8)
    return shown


def windowed(values: Values, *, centre: float, width: float, function: str = "LINEAR") -> Values:
    """Values through a window, as shares of white from 0 to 1 (PS3.3, sections C.11.2.1.2 and C.11.2.1.3).

    ``function`` is LINEAR, whose centre and width count whole values, LINEAR_EXACT or SIGMOID.
    """
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return ((values - centre) / width + 0.5).clip(0, 1)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)


def _stretched(values: Values, *, kept: NDArray[np.bool_]) -> Values:
    inside = values[kept] if kept.any() else values
    low, high = float(inside.min()), float(inside.max())
    return (values - low).clip(0) / (high - low) if high > low else np.zeros_like(values)


def _kept(stored: Any, header: Any) -> NDArray[np.bool_]:
    """Which stored values are of the picture, and do not fill up its frame (PS3.3, section C.7.5.1.1.2)."""
    one = header.get("PixelPaddingValue")
    if one is None:
        return np.ones(stored.shape, dtype=bool)
    other = header.get("PixelPaddingRangeLimit", one)
    kept: NDArray[np.bool_] = (stored < min(one, other)) | (stored > max(one, other))
    return kept


def _rgb(values: Any, header: Any) -> NDArray[np.uint8]:
    if header.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        values = apply_color_lut(values, header)
    if values.ndim != 3 or values.shape[2] != 3:
        raise BadImage(f"DICOM with the photometric interpretation {header.PhotometricInterpretation!r}")
    if values.dtype == np.uint8:
        return np.asarray(values)
    # Entries of palettes have 16 bits, whatever the pixels have.
    bits = 16 if header.PhotometricInterpretation == "PALETTE COLOR" else int(header.BitsStored)
    scaled: NDArray[np.uint8] = (
        (values.astype(np.float64) * (255 / (2.0**bits - 1))).round().clip(0, 255).astype(np.uint8)
    )
    return scaled


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None:
        return None
    several = list(value) if isinstance(value, (list, tuple)) or hasattr(value, "__iter__") else [value]
    return float(several[0]) if several and several[0] not in (None, "") else None


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:80] if text else type(error).__name__
