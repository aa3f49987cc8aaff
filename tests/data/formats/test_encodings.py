import pytest

from unicl.data.formats.encodings import decode_text, open_text
from unicl.errors import UserError

CHINESE = "file,title\na.jpg,一个红色的苹果放在桌子上\nb.jpg,两只小猫在草地上玩\n"
FRENCH = "file,title\na.jpg,un café près de la fenêtre\nb.jpg,une maison à côté\n"


def read(path, encoding=""):
    with open_text(path, encoding=encoding, where=path.name) as file:
        return file.read()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_utf_8_and_files_with_a_byte_order_mark_are_read(tmp_path, encoding):
    path = tmp_path / "t.csv"
    path.write_bytes(CHINESE.encode(encoding))
    assert read(path) == CHINESE
    assert decode_text(CHINESE.encode(encoding), encoding="", where="t") == CHINESE


@pytest.mark.parametrize(
    ("text", "encoding", "proposed"),
    [
        (CHINESE, "gb18030", "encoding=gb18030 ('a.jpg,一个红色的苹果放在桌子上')"),
        ("file,title\na.jpg,一個紅色的蘋果放在桌子上\nb.jpg,兩隻小貓在草地上玩\n", "big5", "encoding=big5"),
        ("file,title\na.jpg,赤いりんごがテーブルの上にあります\n", "shift_jis", "encoding=shift_jis"),
        (FRENCH, "latin-1", "encoding=cp1252 ('a.jpg,un café près de la fenêtre')"),
    ],
)
def test_another_encoding_names_the_place_and_is_proposed(tmp_path, text, encoding, proposed):
    path = tmp_path / "t.csv"
    content = text.encode(encoding)
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    with pytest.raises(UnicodeDecodeError) as wrong:
        content.decode("utf-8")
    start = wrong.value.start
    assert f"byte 0x{content[start]:02x} at position {start} (line 2)" in str(caught.value)
    assert proposed in str(caught.value)
    assert read(path, encoding) == text


def test_a_wrong_byte_far_into_a_file_has_its_own_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"file,title\n" + b"a.jpg,plain\n" * 50_000 + "b.jpg,é\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"position 600,017 \(line 50,002\)"):
        read(path)


def test_the_wrong_encoding_asked_for_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(FRENCH.encode("latin-1"))
    with pytest.raises(UserError, match="is not ascii text"):
        read(path, "ascii")


def test_a_small_text_has_its_line_in_the_message():
    with pytest.raises(UserError, match=r"a.txt is not UTF-8 text: byte 0xe9 at position 8 \(line 2\)"):
        decode_text(b"one\ncaff\xe9 macchiato\n", encoding="", where="a.txt")
