import pytest
import torch

from unicl.data.image import Frame, fit
from unicl.use.explain.area import Area

FRAMES = [Frame(mode=mode, scale=scale) for mode in ("crop", "squash", "pad") for scale in (None, 96)]


def ramp(height, width):
    """Red grows from left to right, green from top to bottom; blue is what is picture."""
    down, across = torch.meshgrid(torch.linspace(0, 255, height), torch.linspace(0, 255, width), indexing="ij")
    return torch.stack([across, down, torch.full_like(down, 255)]).round().to(torch.uint8)


@pytest.mark.parametrize("frame", FRAMES, ids=lambda f: f"{f.mode} {f.scale}")
@pytest.mark.parametrize("size", [(300, 200), (150, 400), (128, 128), (250, 251), (130, 900)])
def test_a_place_of_the_square_lies_where_its_pixels_come_from(frame, size):
    height, width = size
    square = fit(ramp(height, width), size=64, frame=frame).double()
    area = Area.seen(width, height, size=64, frame=frame)
    inner = square[2] == 255
    for row, column in ((8, 50), (32, 32), (50, 10), (30, 20)):
        if not inner[row - 3 : row + 4, column - 3 : column + 4].all():
            continue
        x, y = area.at((column + 0.5) / 64, (row + 0.5) / 64)
        pixel = max(width, height) / 64
        assert abs(float(square[0, row, column]) / 255 * (width - 1) + 0.5 - x) < 0.75 * pixel + 1
        assert abs(float(square[1, row, column]) / 255 * (height - 1) + 0.5 - y) < 0.75 * pixel + 1


def test_a_squashed_picture_is_seen_whole():
    area = Area.seen(70, 30, size=32, frame=Frame(mode="squash"))
    assert area == Area(left=0.0, top=0.0, right=70.0, bottom=30.0)


def test_a_padded_picture_is_seen_with_its_edges():
    area = Area.seen(100, 50, size=50, frame=Frame(mode="pad"))
    assert (area.left, area.right) == (0, 100)
    assert area.top == pytest.approx(-24, abs=2)
    assert area.bottom - area.top == pytest.approx(100)


@pytest.mark.parametrize("frame", FRAMES, ids=lambda f: f"{f.mode} {f.scale}")
@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (7, 3)])
def test_any_picture_has_an_area(frame, size):
    area = Area.seen(*size, size=32, frame=frame)
    assert area.right > area.left
    assert area.bottom > area.top
    assert area.scaled(2, 3).right == 2 * area.right
