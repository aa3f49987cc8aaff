import sys
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import MPEG2MPML, HTJ2KLossless, RLELossless

from dicoms import dicom, ramp
from pictures import encoded, noise
from unicl.data import dicom as dicoms
from unicl.data.dicom import dicom_pixels, is_dicom, windowed
from unicl.data.image import decode
from unicl.data.quarantine import Quarantine
from unicl.data.shards.shrink import stored
from unicl.data.sources import load
from unicl.errors import BadImage, UserError


def gray(content):
    """The one channel of a decoded file, (H, W)."""
    pixels = decode(content).numpy()
    assert pixels.dtype == np.uint8
    assert (pixels[0] == pixels[1]).all()
    assert (pixels[0] == pixels[2]).all()
    return pixels[0]


def stretched(values):
    values = values.astype(np.float64)
    return ((values - values.min()) / (values.max() - values.min()) * 255).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "bits"), [(3, 200, np.uint8, 8), (10, 4000, np.uint16, 12), (0, 65535, np.uint16, 16)]
)
def test_without_a_window_values_go_from_their_lowest_to_their_highest(low, high, dtype, bits):
    values = ramp(low=low, high=high, dtype=dtype)
    assert (gray(dicom(values, bits=bits)) == stretched(values)).all()


def test_signed_values_keep_their_order():
    values = ramp(low=-1000, high=3000, dtype=np.int16)
    assert (gray(dicom(values, signed=True)) == stretched(values)).all()


def test_monochrome1_is_inverted():
    values = ramp()
    plain = gray(dicom(values)).astype(int)
    assert (np.abs(gray(dicom(values, photometric="MONOCHROME1")) - (255 - plain)) <= 1).all()
    assert gray(dicom(values, photometric="MONOCHROME1"))[0, 0] == 255
    with_window = dicom(values, photometric="MONOCHROME1", WindowCenter=1000, WindowWidth=500)
    assert gray(with_window)[0, 0] == 255
    assert gray(with_window)[-1, -1] == 0


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_gives_what_pydicom_makes_of_it(function):
    values = ramp(high=255, dtype=np.uint8)
    content = dicom(values, WindowCenter=100, WindowWidth=80, VOILUTFunction=function)
    header = Dataset()
    header.update({"WindowCenter": 100, "WindowWidth": 80, "VOILUTFunction": function})
    header.BitsStored, header.PixelRepresentation, header.PhotometricInterpretation = 8, 0, "MONOCHROME2"
    expected = np.asarray(apply_voi_lut(values, header)).round()
    assert (np.abs(gray(content) - expected) <= 1).all()
    shares = windowed(values.astype(float), centre=100, width=80, function=function)
    assert np.allclose(shares * 255, apply_voi_lut(values, header), atol=1e-9)


def test_a_window_is_the_formula_of_the_standard():
    values = ramp(high=4095)
    found = gray(dicom(values, bits=12, WindowCenter=[2048, 40], WindowWidth=[1024, 400]))
    for value, shown in zip(values.ravel().tolist(), found.ravel().tolist()):
        low, high = 2048 - 0.5 - 1023 / 2, 2048 - 0.5 + 1023 / 2
        share = 0 if value <= low else 1 if value > high else (value - 2047.5) / 1023 + 0.5
        assert shown == round(share * 255)


def test_a_window_is_in_units_after_the_rescale():
    values = ramp(high=2000)
    rescaled = dicom(values, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=500, WindowWidth=401)
    plain = dicom((values.astype(int) * 2 - 1000).astype(np.int16), signed=True, WindowCenter=500, WindowWidth=401)
    assert (gray(rescaled) == gray(plain)).all()
    falling = dicom(values, RescaleSlope=-1, RescaleIntercept=0)
    assert (np.abs(gray(falling).astype(int) - (255 - stretched(values).astype(int))) <= 1).all()


def test_a_narrow_window_is_a_step_and_one_of_no_width_is_none():
    values = ramp(high=1000)
    assert set(gray(dicom(values, WindowCenter=500, WindowWidth=1)).ravel()) == {0, 255}
    assert (gray(dicom(values, WindowCenter=500, WindowWidth=0)) == stretched(values)).all()


def test_a_lookup_table_of_the_header_is_used():
    values = ramp(high=255, dtype=np.uint8)
    table = Dataset()
    table.LUTDescriptor = [256, 0, 12]
    table.add_new("LUTData", "US", [4095 - 16 * value for value in range(256)])
    content = dicom(values, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
    assert (gray(content) == ((4095 - 16 * values.astype(float)) / 4095 * 255).round()).all()


def test_values_that_fill_up_the_frame_do_not_count():
    values = ramp(low=100, high=900, dtype=np.int16)
    filled = values.copy()
    filled[0] = -2000
    content = dicom(filled, signed=True, PixelPaddingValue=-2000)
    inside = filled[1:].astype(float)
    expected = ((inside - inside.min()) / (inside.max() - inside.min()) * 255).round()
    assert (gray(content)[1:] == expected).all()
    assert (gray(content)[0] == 0).all()


def test_one_value_everywhere_is_black():
    assert (gray(dicom(np.full((4, 5), 77, np.uint16))) == 0).all()


def test_colours_are_kept():
    pixels = noise(6, 8)
    assert (decode(dicom(pixels, photometric="RGB")).permute(1, 2, 0).numpy() == pixels).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (dicom(np.stack([ramp()] * 3)), "a DICOM of 3 frames; wanted is one picture a file"),
        (dicom(ramp())[:150], "broken DICOM"),
        (dicom(ramp())[:-20], "broken DICOM"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 400, "broken DICOM"),
        (b"\0" * 128 + b"DICM", "broken DICOM"),
    ],
)
def test_what_cannot_be_shown_is_a_bad_image_with_a_reason(content, reason):
    with pytest.raises(BadImage, match=reason):
        decode(content)


def test_a_missing_field_is_named():
    with pytest.raises(BadImage, match="its header has no PixelData"):
        decode(dicom(ramp()).replace(b"\xe0\x7f\x10\x00", b"\xe1\x7f\x10\x00"))


def test_a_header_of_a_huge_picture_is_refused_before_its_pixels_are_read():
    with pytest.raises(BadImage, match="too large: 8 x 6 pixels, the limit is 40"):
        dicom_pixels(dicom(ramp()), max_pixels=40)


def test_files_are_told_by_their_mark():
    assert is_dicom(dicom(ramp()))
    assert not is_dicom(encoded(noise()))
    assert not is_dicom(b"DICM")


def test_folders_tables_and_shards_take_dicom_files(tmp_path):
    values = ramp()
    for name in ("a", "b"):
        (tmp_path / f"{name}.dcm").write_bytes(dicom(values, WindowCenter=2000, WindowWidth=4000))
    (tmp_path / "broken.dcm").write_bytes(dicom(values)[:300])
    (tmp_path / "all.csv").write_text("file,title\na.dcm,clear lungs\nb.dcm,an effusion\n")
    source = load(str(tmp_path / "all.csv"))
    assert [decode(sample.image).shape for sample in source.samples] == [(3, 6, 8)] * 2
    folder = load(f"{tmp_path}?format=image folder")
    assert [sample.id for sample in folder.samples] == ["a.dcm", "b.dcm", "broken.dcm"]
    kept = stored(tmp_path / "a.dcm", shorter=None, quality=95)
    assert (kept.extension, kept.width, kept.height, kept.made) == ("dcm", 8, 6, False)
    assert stored(tmp_path / "a.dcm", shorter=4, quality=95).extension == "jpg"
    quarantine = Quarantine(limit=1)
    with pytest.raises(BadImage) as caught:
        decode(folder.samples[2].image)
    quarantine.add("broken.dcm", reason=str(caught.value))
    assert len(quarantine) == 1


def test_without_pydicom_the_message_says_how_to_install_it(monkeypatch):
    content = dicom(ramp())
    dicoms._pydicom.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    try:
        with pytest.raises(UserError, match=r"pip install 'unicl\[dicom\]'"):
            decode(content)
    finally:
        dicoms._pydicom.cache_clear()


def test_a_wrong_date_is_no_warning(recwarn):
    content = dicom(ramp()).replace(b"DX", b"\xffX")
    decode(content)
    assert not [one for one in recwarn if "pydicom" in str(one.filename)]
    assert pydicom.config.settings.reading_validation_mode == pydicom.config.IGNORE


def compressed(syntax):
    """A file whose pixels claim to be compressed in this way, and are nothing."""
    header = pydicom.dcmread(BytesIO(dicom(ramp())))
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = encapsulate([b"nothing"])
    header["PixelData"].is_undefined_length = True
    file = BytesIO()
    header.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        (RLELossless, "broken DICOM: its pixels, compressed as RLE Lossless, cannot be unpacked"),
        (HTJ2KLossless, r"run pip install 'unicl\[dicom\]', and if that is not enough, install pylibjpeg.*openjpeg"),
        (MPEG2MPML, "which pydicom cannot unpack; save it in another way"),
    ],
)
def test_compressed_pixels_that_cannot_be_had_say_whether_a_package_would_help(syntax, reason):
    with pytest.raises(BadImage, match=reason):
        decode(compressed(syntax))


def by_pydicom(content):
    """What pydicom's own functions make of a file with a window or a table, in 256 steps of their whole range."""
    header = pydicom.dcmread(BytesIO(content))
    units = apply_modality_lut(header.pixel_array, header)
    if "VOILUTSequence" in header:
        low, high = 0.0, 2.0 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        bits, slope, start = header.BitsStored, header.RescaleSlope, header.RescaleIntercept
        lowest = -(2.0 ** (bits - 1)) if header.PixelRepresentation else 0.0
        low, high = (value * slope + start for value in (lowest, lowest + 2.0**bits - 1))
    shares = (apply_voi_lut(units, header, index=0) - low) / (high - low)
    shares = 1 - shares if header.PhotometricInterpretation == "MONOCHROME1" else shares
    return (shares * 255).round()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_and_tables_after_a_rescale_are_pydicoms_pixel_by_pixel(photometric, signed):
    values = np.random.default_rng(0).integers(-2000 if signed else 0, 2000, (12, 15))
    values = values.astype(np.int16 if signed else np.uint16)
    units = {"signed": signed, "photometric": photometric, "RescaleSlope": 1.5, "RescaleIntercept": -1024.0}
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        content = dicom(values, **units, WindowCenter=[-40, 5], WindowWidth=[700, 9], VOILUTFunction=function)
        assert np.abs(gray(content) - by_pydicom(content)).max() <= 1
    table = Dataset()
    table.add_new("LUTDescriptor", "SS" if signed else "US", [300, -500 if signed else 100, 12])
    table.add_new("LUTData", "US", list(range(0, 4096, 14))[:293] + [4095] * 7)
    content = dicom(values, **{**units, "RescaleSlope": 1.0, "RescaleIntercept": 0.0}, VOILUTSequence=[table])
    assert np.abs(gray(content) - by_pydicom(content)).max() <= 1
