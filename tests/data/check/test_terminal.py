import io
from pathlib import Path

import pytest
from rich.console import Console

from unicl.data.check.run import check
from unicl.data.check.terminal import gigabytes, show
from unicl.space import Sample


def printed(report, *, width: int) -> str:
    file = io.StringIO()
    show(report, console=Console(file=file, width=width, color_system=None))
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 140])
def test_the_tables_say_what_matters(make_source, album: list[Path], width: int) -> None:
    samples = [Sample(id=p.name, image=p, labels=("a" if k % 2 else "b",)) for k, p in enumerate(album)]
    text = printed(check([make_source(samples, name="photos")], batch_size=8), width=width)
    flat = " ".join(text.split())
    assert "photos" in text
    assert "12 rows without an image" in text
    assert "recipe unicl" in text
    assert "2 classes of 5 samples each" in flat
    assert "same class" in text
    assert max(map(len, text.splitlines())) <= width


def test_a_problem_comes_last_and_names_itself(make_source, album: list[Path]) -> None:
    samples = [Sample(id=p.name, image=p, labels=("a",)) for p in album]
    text = printed(check([make_source(samples)]), width=120)
    assert "1 problem makes training impossible: all labelled images are of one class" in text.splitlines()[-1]


def test_names_with_brackets_are_not_styles(make_source) -> None:
    samples = [Sample(id="1", captions=("[bold]a",)), Sample(id="2", captions=("[bold]a",))]
    text = printed(check([make_source(samples, name="[red]x")]), width=120)
    assert "[red]x" in text
    assert "[bold]a" in text


def test_sizes_are_short() -> None:
    assert (gigabytes(3_400_000), gigabytes(12_340_000_000)) == ("3 MB", "12.3 GB")
