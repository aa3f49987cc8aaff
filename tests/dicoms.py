"""DICOM files as bytes, written with pydicom."""

from io import BytesIO

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


def dicom(pixels, *, photometric="MONOCHROME2", bits=None, signed=False, **fields):
    """The file of ``(H, W)`` or ``(frames, H, W)`` gray values, or of ``(H, W, 3)`` colours; more fields by keyword."""
    colours = photometric in ("RGB", "YBR_FULL")
    allocated = 8 * pixels.dtype.itemsize
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["a file"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.Modality = "DX"
    header.SamplesPerPixel = 3 if colours else 1
    header.PhotometricInterpretation = photometric
    if colours:
        header.PlanarConfiguration = 0
    header.Rows, header.Columns = pixels.shape[:2] if colours else pixels.shape[-2:]
    if pixels.ndim == 3 and not colours:
        header.NumberOfFrames = len(pixels)
    header.BitsAllocated, header.BitsStored = allocated, bits or allocated
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(signed)
    for name, value in fields.items():
        setattr(header, name, value)
    header.PixelData = np.ascontiguousarray(pixels).tobytes()
    file = BytesIO()
    pydicom.dcmwrite(file, header, enforce_file_format=True)
    return file.getvalue()


def ramp(height=6, width=8, *, low=0, high=4095, dtype=np.uint16):
    """Values from ``low`` to ``high``, rows after each other."""
    return np.linspace(low, high, height * width).round().astype(dtype).reshape(height, width)
