"""Where sentences begin and end."""

import pytest

from unicl.data.reports.sentences import count_words, places


def said(text):
    return [text[start:end] for start, end in places(text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("no effusion . heart is normal .", ["no effusion .", "heart is normal ."]),
        ("A 1.5 cm nodule. Next.", ["A 1.5 cm nodule.", "Next."]),
        ("A nodule of 5 mm. It grew.", ["A nodule of 5 mm.", "It grew."]),
        ("About 5 mm. in size. Next!", ["About 5 mm. in size.", "Next!"]),
        ("Seen, e.g. here. Yes?", ["Seen, e.g. here.", "Yes?"]),
        ("1. One. 2. Two.", ["One.", "Two."]),
        ("心影增大。未见气胸；", ["心影增大。", "未见气胸；"]),
        ("12. 34. .", []),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, wanted):
    assert said(text) == wanted


@pytest.mark.parametrize(("text", "count"), [("No focal X-ray, 3.5 cm!", 7), ("CT检查: 正常", 5), ("- .", 0)])
def test_words_are_runs_of_letters_and_digits_and_chinese_characters(text, count):
    assert count_words(text) == count
