import io
from pathlib import Path

import pytest
from PIL import Image

from unicl.data.check.images import Look, look, look_all


def test_an_image_is_measured_and_marked(album: list[Path]) -> None:
    found = look(album[0])
    assert isinstance(found, Look)
    assert (found.width, found.height) == (160, 160)
    assert found == look(album[0].read_bytes())


def test_equal_pixels_in_other_bytes_are_told_from_equal_bytes(album: list[Path]) -> None:
    file = io.BytesIO()
    Image.open(album[0]).save(file, "BMP")
    png, bmp, other = look(album[0]), look(file.getvalue()), look(album[1])
    assert isinstance(png, Look)
    assert isinstance(bmp, Look)
    assert isinstance(other, Look)
    assert png.content != bmp.content
    assert png.pixels == bmp.pixels
    assert png.pixels != other.pixels


def test_the_same_values_in_another_shape_are_another_picture() -> None:
    def plain(size: tuple[int, int]) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", size, "red").save(file, "PNG")
        return file.getvalue()

    wide, high = look(plain((20, 10))), look(plain((10, 20)))
    assert isinstance(wide, Look)
    assert isinstance(high, Look)
    assert wide.pixels != high.pixels


@pytest.mark.parametrize("fault", ["missing", "empty", "cut off", "no image"])
def test_what_cannot_be_read_gives_a_reason(fault: str, tmp_path: Path, photos: list[Image.Image]) -> None:
    path = tmp_path / "a.jpg"
    photos[0].save(path)
    contents = {"empty": b"", "cut off": path.read_bytes()[:2000], "no image": b"hello" * 99}
    path.write_bytes(contents.get(fault, b""))
    if fault == "missing":
        path.unlink()
    reason = look(path)
    assert isinstance(reason, str)
    assert reason


def test_threads_keep_the_order(album: list[Path]) -> None:
    assert look_all(album * 3, workers=4, progress=False) == [look(path) for path in album] * 3
