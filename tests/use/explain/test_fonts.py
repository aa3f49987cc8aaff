import pytest
from PIL import Image, ImageDraw

from unicl.errors import UserError
from unicl.use.explain.fonts import VARIABLE, Fonts, advice, covers, find_fonts

PILLOWS = ("", 0)
NOWHERE = "\U0010fffe"


@pytest.fixture
def plain(monkeypatch):
    """Pillow's own font alone, which every machine has."""
    monkeypatch.delenv(VARIABLE, raising=False)
    return Fonts(faces=(PILLOWS,), lacking="红")


def ink(fonts, text):
    canvas = Image.new("L", (200, 60), 0)
    fonts.draw(ImageDraw.Draw(canvas), text, at=(5, 30), size=30, colour="#ffffff")
    return canvas


def test_a_font_covers_what_it_draws():
    assert covers(PILLOWS, "a")
    assert not covers(PILLOWS, "红")
    assert not covers(PILLOWS, NOWHERE)


def test_chinese_is_drawn_by_a_font_that_has_it_or_said_to_be_missing(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    fonts = find_fonts(["a red apple", "红苹果"])
    if fonts.lacking:
        assert set(fonts.lacking) == set("红苹果")
        assert "fonts-wqy-zenhei" in advice(fonts)
    else:
        assert all(any(covers(face, letter) for face in fonts.faces) for letter in "红苹果")
        assert ink(fonts, "红").tobytes() != ink(fonts, "苹").tobytes()
        assert ink(fonts, "红").tobytes() != ink(fonts, NOWHERE).tobytes()
        assert advice(fonts) == ""


def test_letters_that_no_font_has_stand_as_their_codes(plain):
    assert plain.written("a 红\npear") == "a [7EA2] pear"
    assert "no font of this machine has 红" in advice(plain)
    assert ink(plain, "红").getbbox() is not None


def test_a_font_is_looked_for_once_for_each_letter(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    fonts = find_fonts([f"a{NOWHERE}", "b"])
    assert fonts.lacking == NOWHERE
    assert "fonts-noto-core" in advice(Fonts(faces=fonts.faces, lacking="\u1234"))


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_font_file_that_is_none_is_an_error(by, tmp_path, monkeypatch):
    path = tmp_path / "a.ttf"
    monkeypatch.setenv(VARIABLE, str(path) if by == "environment" else "")
    given = path if by == "argument" else None
    with pytest.raises(UserError, match="does not exist"):
        find_fonts(["a"], given=given)
    path.write_text("no font")
    with pytest.raises(UserError, match="is no font that can be read"):
        find_fonts(["a"], given=given)


def test_a_text_is_shortened_to_its_width(plain):
    assert plain.shortened("a pear", size=20, width=1000) == "a pear"
    short = plain.shortened("a pear on a table", size=20, width=80)
    assert short.endswith("…")
    assert plain.length(short, 20) <= 80


def test_lines_break_between_words_and_between_chinese_letters(plain):
    lines = plain.wrapped("one two three four", size=20, width=90, lines=4)
    assert len(lines) > 1
    assert " ".join(lines) == "one two three four"
    assert all(plain.length(line, 20) <= 90 for line in lines)
    wide = "ＡＢＣＤＥＦ"
    broken = plain.wrapped(wide, size=20, width=plain.length(wide, 20) / 2 + 1, lines=9)
    assert broken == [wide[:3], wide[3:]]


def test_more_lines_than_there_is_room_for_end_on_dots(plain):
    lines = plain.wrapped("one two three four five six", size=20, width=60, lines=2)
    assert len(lines) == 2
    assert lines[-1].endswith("…")
    assert plain.wrapped("", size=20, width=60, lines=2) == [""]
