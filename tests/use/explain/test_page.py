import json
import re
from dataclasses import replace

import pytest

from unicl.use.explain.page import page


@pytest.fixture(scope="module")
def script():
    return "</script><script>alert(1)</script>"


def data(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def test_a_page_asks_nothing_of_a_network(found):
    html, count = re.subn(r"url\(data:image/(?:png|jpeg);base64,[^)]*\)", "", page(found))
    assert count == 1 + 4
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?:|//[a-z]|fetch\(|XMLHttp", html)


def test_a_page_has_a_layer_and_a_choice_for_each_word_and_the_whole(found):
    html = page(found)
    assert len(re.findall(r"\.l\d+ \{ background-image", html)) == 4
    assert len(re.findall(r'<input type="radio"', html)) == 4
    assert len(re.findall(r"<li>", html)) == 4
    assert "has(#w3:checked)" in html, "words can be chosen without a script"


def test_what_a_script_reads_are_the_numbers(found):
    read = data(page(found))
    assert read["words"] == ["a", "red", "<apple>"]
    assert (read["rows"], read["columns"]) == (2, 3)
    assert read["heat"][0] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert read["best"] == [3, 0, 1, 2, 4, 3]


def test_the_class_index_marks_the_places_of_the_label(found):
    html = page(found)
    assert "Class index: red" in html
    assert html.count('class="hit"') == html.count("<rect") == 1
    assert "1 of 6 places show it" in html
    assert "<svg" not in page(replace(found, index=None))


def test_what_is_written_is_text(found, script):
    html = page(replace(found, text=script, words=("a", "red", script), image=script, notes=(script,)))
    assert "<script>alert" not in html
    assert data(html)["words"][2] == script
    assert html.count("&lt;/script&gt;") >= 4


@pytest.mark.parametrize("scale", ["joint", "word"])
def test_the_ends_of_the_colours_are_numbers_where_all_words_share_them(found, scale):
    legend = re.search(r'<div class="legend">(.*?)</div>', page(found, scale=scale), re.S)[1]
    assert ("lowest" in legend) == (scale == "word")
    assert ("1.000" in legend) == (scale == "joint")


def test_a_name_that_is_not_utf_8_can_be_written(found):
    page(replace(found, image="caf\udce9.png")).encode("utf-8")
