import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from unicl.data.check.page import PICTURES, page, thumbnail
from unicl.data.check.run import check
from unicl.space import Sample

EMPTY = frozenset({"meta", "img", "br", "link", "rect", "circle", "line", "i"})


class Nesting(HTMLParser):
    """Collects tags that close in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in EMPTY:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture
def sources(make_source, album: list[Path]) -> list:
    copy = album[0].with_name("copy.jpg")
    Image.open(album[0]).save(copy)
    first = [Sample(id=p.name, image=p, labels=("x" if k % 2 else "y",), namespace="a") for k, p in enumerate(album)]
    second = [
        Sample(id="copy.jpg", image=copy, captions=("<script>alert(1)</script>",)),
        Sample(id="bad", image=b"broken", captions=("图片",)),
    ]
    return [make_source(first, name="folder"), make_source(second, name="table")]


def test_the_page_is_whole_and_needs_nothing_else(sources: list) -> None:
    text = page(check(sources, batch_size=4), sources=sources)
    nesting = Nesting()
    nesting.feed(text)
    assert not nesting.wrong
    assert not nesting.open
    addresses = re.findall(r'(?:src|href)="([^"]{0,30})', text) + re.findall(r"url\(([^)]{0,30})", text)
    assert addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert "prefers-color-scheme: dark" in text


def test_texts_of_the_data_are_shown_not_run(sources: list) -> None:
    text = page(check(sources, batch_size=4), sources=sources)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "Chinese" in text


def test_near_duplicates_stand_side_by_side_and_bad_images_are_listed(sources: list) -> None:
    text = page(check(sources, batch_size=4), sources=sources)
    group = text[text.index("Near-duplicates: 1 group") :]
    group = group[: group.index("</section>")]
    assert group.count("<img") == 2
    assert "copy.jpg" in group
    assert "Cannot be read" in text


def test_a_single_bad_source_still_gives_a_page(make_source) -> None:
    sources = [make_source([Sample(id="1", image=b"broken"), Sample(id="2", captions=("a",))])]
    assert "No image can be read." in page(check(sources), sources=sources)


def test_many_classes_stay_a_small_page(make_source, album: list[Path]) -> None:
    contents = [path.read_bytes() for path in album]
    samples = [
        Sample(
            id=f"{c}-{k}", image=contents[k % 10] + b" " * (10 * c + k), labels=(f"class {c}",), captions=(f"c {k}",)
        )
        for c in range(40)
        for k in range(6)
    ]
    sources = [make_source(samples)]
    text = page(check(sources, batch_size=64), sources=sources)
    assert text.count("<img") <= 2 * PICTURES
    assert len(text) < 4_000_000


def test_a_small_picture_is_a_small_jpeg(album: list[Path]) -> None:
    assert len(thumbnail(album[0])) < 12_000
    assert thumbnail(b"broken") == ""
