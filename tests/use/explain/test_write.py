import io
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console

from unicl.errors import UserError
from unicl.use.explain.write import require_ending, show, to_json, write


@pytest.mark.parametrize("ending", [".html", ".HTM", ".png", ".json"])
@pytest.mark.usefixtures("no_font")
def test_an_ending_says_the_format(found, ending, tmp_path):
    path = tmp_path / "new" / f"match{ending}"
    write(found, path)
    begins = {".png": b"\x89PNG", ".json": b"{"}.get(ending, b"<!doctype html>")
    assert path.read_bytes().startswith(begins)
    if ending == ".png":
        with Image.open(path) as opened:
            opened.verify()


@pytest.mark.parametrize("name", ["match.pdf", "match", ".html", "match.jpg"])
def test_an_ending_of_no_format_is_an_error(name, tmp_path):
    with pytest.raises(UserError, match=r"says no format.*\.html, \.htm, \.png, \.json"):
        require_ending(tmp_path / name)


@pytest.mark.parametrize("ending", [".html", ".png", ".json"])
def test_a_place_that_cannot_be_written_is_an_error(found, ending, tmp_path):
    (tmp_path / "file").write_text("a file")
    (tmp_path / f"folder{ending}").mkdir()
    for path in (tmp_path / "file" / f"match{ending}", tmp_path / f"folder{ending}"):
        with pytest.raises(UserError, match="cannot write"):
            write(found, path)


@pytest.mark.usefixtures("no_font")
def test_letters_without_a_font_are_spoken_of(found, tmp_path):
    strange = replace(found, text="a \U0010fffd")
    assert "no font of this machine has" in write(strange, tmp_path / "a.png")
    assert write(strange, tmp_path / "a.html") == ""


def test_numbers_are_all_there(found):
    read = json.loads(to_json(found))
    assert (read["model"], read["image"], read["method"]) == ("filip", "flower.jpg", "products")
    assert read["area"] == {"left": 100, "top": 50, "right": 500, "bottom": 400}
    assert [each["word"] for each in read["words"]] == ["a", "red", "<apple>"]
    assert torch.allclose(torch.tensor([each["heat"] for each in read["words"]]), found.heat)
    assert read["index"]["best"] == [[3, 0, 1], [2, 4, 3]]
    assert json.loads(to_json(replace(found, index=None)))["index"] is None


def printed(explanation):
    file = io.StringIO()
    show(explanation, Console(file=file, width=120))
    return file.getvalue()


def test_a_terminal_shows_each_word_with_its_best_place(found):
    lines = printed(found).splitlines()
    assert lines[0] == '"a red <apple> & "pear"", filip: 0.321'
    rows = [" ".join(line.split()) for line in lines[2:5]]
    assert rows == [
        "a 0.500 row 2, column 3 (pixel 433, 312)",
        "red 1.000 row 1, column 1 (pixel 167, 138)",
        "<apple> 0.200 none: the same everywhere",
    ]
    assert "1 of 6 places show red" in lines
    assert lines[-1] == "note: a note"


def test_a_terminal_takes_texts_as_they_are(found):
    assert "[bold]red[/bold]" in printed(replace(found, words=("[bold]red[/bold]", "b", "c")))
