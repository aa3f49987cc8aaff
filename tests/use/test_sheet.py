import base64
import io
import json
import re

import pytest
from PIL import Image

from unicl.errors import UserError
from unicl.use.classify import classify
from unicl.use.search import search
from unicl.use.sheet import page, require_ending, sheet, thumbnail, write


@pytest.fixture
def found(model, photos, tmp_path):
    query = f"{photos}/flower/1.jpg + <b>red</b> - night"
    return search(model, [photos], query=query, top=5, cache=tmp_path / "cache")


def test_the_page_holds_everything_that_it_shows(found):
    text = page(sheet(found))
    inside = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(inside) == 6
    assert all(max(Image.open(io.BytesIO(base64.b64decode(each))).size) <= 360 for each in inside)
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "&lt;b&gt;red&lt;/b&gt;" in text
    assert "<b>red" not in text
    assert "prefers-color-scheme: dark" in text
    assert all(f"{hit.score:.3f}" in text for hit in found.hits)


def test_the_bars_of_a_search_are_relative_to_the_best(found):
    shares = [tile.bars[0].share for tile in sheet(found).tiles]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert all(0 <= share <= 1 for share in shares)
    assert [part.sign for part in sheet(found).parts] == ["", "+", "−"]


def test_the_sheet_of_classes_shows_the_three_likeliest(model, photos):
    found = classify(model, [photos], names=("a", "b", "c", "d"))
    made = sheet(found)
    assert len(made.tiles) == 12
    assert [bar.share for bar in made.tiles[0].bars] == [share for _, share in found.rows[0].answers[:3]]
    assert made.tiles[0].rank is None
    assert found.rows[0].answers[0][0] in page(made)


def test_a_picture_that_is_gone_leaves_a_gap(found):
    for hit in found.hits:
        hit.image.unlink(missing_ok=True)
    assert page(sheet(found)).count("no picture") == 5
    assert thumbnail(None) is None


@pytest.mark.parametrize("name", ["a.html", "deep/er/a.HTM", "a.png", "a.jsonl"])
def test_the_ending_says_what_is_written(found, tmp_path, name):
    write(found, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    if name.endswith("png"):
        assert Image.open(io.BytesIO(content)).format == "PNG"
    elif name.endswith("jsonl"):
        assert len([json.loads(line) for line in content.splitlines()]) == 5
    else:
        assert content.startswith(b"<!doctype html>")


def test_an_ending_that_says_no_format_is_told(found, tmp_path):
    with pytest.raises(UserError, match=r"'.pgn'.*did you mean '.png'"):
        require_ending(tmp_path / "sheet.pgn")
    with pytest.raises(UserError, match="end it on one of .html"):
        write(found, tmp_path / "sheet")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write(found, tmp_path / "file" / "a.png")


def test_both_scores_are_shown_where_parts_rank(parted, photos, tmp_path):
    found = search(parted, [photos], query="red", top=3, cache=tmp_path / "cache")
    made = sheet(found)
    for tile, hit in zip(made.tiles, found.hits, strict=True):
        assert [bar.words for bar in tile.bars] == [f"{hit.score:.3f}", f"{hit.cosine:.3f}"]
        assert [bar.name for bar in tile.bars] == ["", "cosine"]
    assert max(tile.bars[1].share for tile in made.tiles) <= 1
    assert "ranked by tokenwise" in page(made)
    write(found, tmp_path / "a.png")
