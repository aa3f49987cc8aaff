import sqlite3
import sys

import pytest

from unicl.data.words import phrases
from unicl.data.words.phrases import Parsed, language_read, parse
from unicl.errors import UserError

ENGLISH = "Two black dogs are running through the tall grass near J. Smith's wall."
CHINESE = "一只黑色的狗在草地上奔跑"
TEXTS = [ENGLISH, CHINESE, "Красный дом", "12 !!", "", "a \ud800 dog", ENGLISH]


@pytest.fixture
def forgetful():
    """Nothing is known of what is installed, before and after."""
    phrases._pipeline.cache_clear()
    phrases._jieba.cache_clear()
    yield
    phrases._pipeline.cache_clear()
    phrases._jieba.cache_clear()


def test_words_have_their_part_of_speech_and_stand_where_they_say():
    for text, parsed in zip(TEXTS, parse(TEXTS), strict=True):
        for word in () if parsed is None or "\ud800" in text else parsed.words:
            assert text[word.start : word.end] == word.text
    [english, chinese] = parse([ENGLISH, CHINESE])
    parts = {word.lemma: word.part for word in english.words}
    assert [parts[w] for w in ("dog", "black", "run", "grass", "smith")] == ["NOUN", "ADJ", "VERB", "NOUN", "PROPN"]
    assert {word.text: word.part for word in chinese.words}["奔跑"] == "VERB"


def test_nouns_are_lemmas_and_phrases_lose_their_articles():
    english, chinese, russian, numbers, empty, broken, _ = parse(TEXTS)
    assert {"dog", "grass", "wall"} <= set(english.nouns())
    assert "run" not in english.nouns()
    assert english.phrases[:2] == ("black dog", "tall grass")
    assert chinese.phrases == ("黑色的狗", "草地")
    assert set(chinese.nouns()) == {"黑色", "狗", "草地"}
    assert russian is None
    assert empty == Parsed() == numbers
    assert list(broken.nouns()) == ["dog"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a dog", "en"),
        ("狗", "zh"),
        ("苹果iPhone手机壳", "zh"),
        ("a T恤", "zh"),
        ("a sign 狗", "en"),
        ("犬です", "ja"),
        ("7", ""),
    ],
)
def test_the_language_of_a_text_is_that_of_most_of_what_it_says(text, language):
    assert language_read(text) == language


def test_what_was_read_is_kept_and_read_again(tmp_path):
    file = tmp_path / "kept" / "words.db"
    first = list(parse(TEXTS, cache=file))
    with sqlite3.connect(file) as db:
        assert db.execute("SELECT count(*) FROM parsed").fetchone() == (len(set(TEXTS)) - 1,)
        db.execute("UPDATE parsed SET value = '[[], [\"kept\"]]'")
    again = list(parse(TEXTS, cache=file))
    assert [p.phrases for p in again if p is not None] == [("kept",)] * 6
    assert first == list(parse(TEXTS))


def test_a_file_that_is_no_store_is_named(tmp_path):
    (tmp_path / "words.db").write_bytes(b"something else, and quite long, to be no database at all")
    with pytest.raises(UserError, match="words.db.*remove the file"):
        list(parse(TEXTS, cache=tmp_path / "words.db"))


@pytest.mark.slow
def test_processes_share_many_texts_and_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(phrases, "SEVERAL", 4)
    monkeypatch.setattr(phrases, "BLOCK", 2)
    chinese = [CHINESE, "红色自行车", "漂亮的女孩", CHINESE, "北京"]
    seen = []
    found = list(parse(chinese, workers=2, cache=tmp_path / "w.db", moved=seen.append))
    assert found == list(parse(chinese))
    assert sum(seen) == 5


@pytest.mark.usefixtures("forgetful")
def test_a_missing_pipeline_says_how_to_install_it(monkeypatch):
    for name in phrases.PIPELINES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="python -m spacy download en_core_web_sm"):
        list(parse([ENGLISH]))
    assert list(parse(["7"])) == [Parsed()]
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match=r"pip install 'unicl\[words\]'"):
        list(parse([ENGLISH]))
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match=r"Chinese words.*pip install 'unicl\[words\]'"):
        list(parse([CHINESE]))
