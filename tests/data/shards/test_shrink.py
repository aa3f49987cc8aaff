from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pictures import encoded, noise
from unicl.data.image import decode
from unicl.data.shards.shrink import stored
from unicl.errors import BadImage


def opened(content):
    image = Image.open(BytesIO(content))
    image.load()
    return image


def pixels(content):
    return np.asarray(opened(content).convert("RGB")).astype(int)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 60, (24, 16)), (61, 40, (16, 24)), (90, 17, (16, 85))])
def test_the_shorter_side_gets_the_length_and_the_aspect_stays(height, width, size):
    made = stored(encoded(noise(height, width)), shorter=16, quality=95)
    assert opened(made.content).size == size == (made.width, made.height)
    assert (made.extension, made.made) == ("jpg", True)


def test_nothing_is_enlarged():
    made = stored(encoded(noise(20, 30)), shorter=256, quality=95)
    assert opened(made.content).size == (30, 20)
    assert made.extension == "jpg"


def test_pixels_are_those_of_an_antialiased_bicubic():
    source = noise(160, 200, channels=1).repeat(3, axis=2)  # colours are stored at half the resolution
    made = stored(encoded(source), shorter=40, quality=100)
    wanted = np.asarray(Image.fromarray(source).resize((50, 40), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels(made.content) - wanted).mean() < 3
    striped = np.zeros((160, 160, 3), dtype=np.uint8)
    striped[:, ::2] = 255
    gray = pixels(stored(encoded(striped), shorter=40, quality=95).content)
    assert abs(gray.mean() - 127.5) < 3
    assert gray[8:-8, 8:-8].std() < 4


def test_quality_is_that_of_jpeg():
    source = encoded(noise(64, 64))
    sizes = [len(stored(source, shorter=32, quality=quality).content) for quality in (30, 75, 95)]
    assert sizes == sorted(sizes)
    reference = opened(encoded(noise(32, 32), "JPEG", quality=75, subsampling=2))
    found = opened(stored(source, shorter=32, quality=75).content)
    assert found.quantization == reference.quantization
    assert [layer[1:3] for layer in found.layer] == [(2, 2), (1, 1), (1, 1)]


def test_transparent_parts_become_white_as_decode_makes_them():
    layer = np.concatenate([noise(40, 40, channels=1)] * 3 + [np.zeros((40, 40, 1), np.uint8)], axis=2)
    layer[:, 20:, 3] = 255
    source = encoded(layer)
    found = pixels(stored(source, shorter=40, quality=100).content)
    assert found[:, :16].min() > 240
    assert np.abs(found - decode(source).permute(1, 2, 0).numpy().astype(int)).mean() < 4


def test_a_turned_image_is_stored_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    source = encoded(noise(40, 60), "JPEG", exif=exif, quality=95)
    made = stored(source, shorter=20, quality=95)
    assert opened(made.content).size == (20, 30)
    assert 0x0112 not in opened(made.content).getexif()
    small = stored(source, shorter=100, quality=95)
    assert small.made
    assert opened(small.content).size == (40, 60)
    copied = stored(source, shorter=None, quality=95)
    assert (copied.content, copied.width, copied.height) == (source, 40, 60)


@pytest.mark.parametrize(
    ("format", "extension"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
        ("PPM", "ppm"),
    ],
)
def test_without_a_size_the_file_is_copied_untouched(format, extension):
    source = encoded(noise(), format)
    copied = stored(source, shorter=None, quality=10)
    assert (copied.content, copied.extension, copied.made) == (source, extension, False)
    assert (copied.width, copied.height, copied.read) == (24, 20, len(source))


def test_a_format_that_archives_do_not_know_becomes_a_jpeg():
    made = stored(encoded(noise(32, 32), "ICO"), shorter=None, quality=95)
    assert (made.extension, made.made) == ("jpg", True)
    assert opened(made.content).format == "JPEG"


def test_a_small_jpeg_is_copied_instead_of_losing_quality_again():
    source = encoded(noise(20, 30), "JPEG", quality=60)
    assert stored(source, shorter=20, quality=95).content == source
    assert stored(source, shorter=19, quality=95).content != source
    cmyk = encoded(Image.fromarray(noise(20, 30)).convert("CMYK"), "JPEG")
    assert opened(stored(cmyk, shorter=20, quality=95).content).mode == "RGB"


@pytest.mark.parametrize("shorter", [None, 16])
def test_an_image_that_cannot_be_decoded_is_bad_even_if_it_would_be_copied(shorter, tmp_path):
    whole = encoded(noise(200, 200), "JPEG")
    for content in (b"", b"no image", whole[: len(whole) // 2], tmp_path / "missing.jpg"):
        with pytest.raises(BadImage):
            stored(content, shorter=shorter, quality=95)


def test_an_image_too_long_for_jpeg_is_bad():
    with pytest.raises(BadImage, match="too long for a JPEG"):
        stored(encoded(np.zeros((1, 70_000, 3), np.uint8)), shorter=8, quality=95)
