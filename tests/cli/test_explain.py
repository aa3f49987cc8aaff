"""Which places of a picture speak for which words, as a user asks for it."""

import json

import pytest

from cli_cases import SMALL, code


@pytest.fixture(scope="module")
def parts(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("parts") / "run"
    sources = ("--data", data[0], "--data", f"{data[1]}?text=title")
    assert code("train", "--recipe", "filip", *sources, "--out", out, *SMALL) == 0
    return out


def said(error):
    """What a command said, on one line."""
    return " ".join(error.split())


def test_a_model_of_parts_is_explained_as_a_page_a_sheet_and_numbers(data, parts, tmp_path, capsys):
    image = f"{data[0]}/red/0.png"
    for name in ("match.html", "match.png", "deep/match.json"):
        assert code("explain", parts, image, "a {label} square", "--label", "red", "--out", tmp_path / name) == 0
        assert name.rpartition("/")[2] in "".join(capsys.readouterr().err.split())
    assert "Class index: red" in (tmp_path / "match.html").read_text(encoding="utf-8")
    read = json.loads((tmp_path / "deep" / "match.json").read_text(encoding="utf-8"))
    assert [each["word"] for each in read["words"]] == ["a", "red", "square"]
    assert (read["method"], read["index"]["label"]) == ("products", "red")


def test_a_model_of_whole_pictures_is_explained_in_the_terminal(data, run, capsys):
    assert code("explain", run, f"{data[0]}/red/0.png", "a red square", "--view", "classes") == 0
    printed = capsys.readouterr()
    assert "Grad-CAM" in printed.out
    assert "--out match.html" in said(printed.err)


@pytest.mark.parametrize(
    ("image", "text", "more", "wanted"),
    [
        ("red/0.png", " ", (), "the text is empty"),
        ("red/9.png", "red", (), "there is no picture"),
        ("red", "red", (), "takes one picture"),
        ("red/0.png", "a {label}", (), "--label"),
        ("red/0.png", "a red", ("--label", "blue"), "not among the words"),
        ("red/0.png", "red", ("--out", "match.pdf"), "says no format"),
        ("red/0.png", "red", ("--out", "/dev/null/match.html"), "cannot write"),
        ("red/0.png", "red", ("--view", "words"), "--view"),
    ],
)
def test_what_cannot_be_explained_says_why(data, parts, capsys, image, text, more, wanted):
    assert code("explain", parts, f"{data[0]}/{image}", text, *more) in (1, 2)
    error = capsys.readouterr().err
    assert wanted in said(error)
    assert "Traceback" not in error


def test_a_broken_picture_and_an_unknown_model_are_errors(parts, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    assert code("explain", parts, tmp_path / "broken.png", "red") == 2
    assert "cannot be used" in said(capsys.readouterr().err)
    assert code("explain", tmp_path / "nothing", tmp_path / "broken.png", "red") == 2
    assert "nothing" in said(capsys.readouterr().err)


def test_help_has_examples(capsys):
    assert code("explain", "--help") == 0
    assert "unicl explain runs/f" in said(capsys.readouterr().out)
