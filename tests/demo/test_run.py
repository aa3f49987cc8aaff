"""The whole demo for a few steps: it needs the packages of the demo's extra, which the lock file brings."""

import json
import re

import pytest

from unicl.demo.run import demo
from unicl.demo.scores import LANGUAGES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, demo(out, seeds=1, steps=3)


def test_the_demo_leaves_a_table_with_every_column_of_every_system(shown):
    out, results = shown
    plain = json.loads((out / "results.json").read_text())
    assert list(plain["systems"]) == ["clip", "unicl", "one space", "itl"]
    columns = list(plain["systems"]["itl"])
    assert len(columns) == 12
    assert all(f"zero-shot, {which}, {code}" in columns for which in ("seen", "unseen") for code in LANGUAGES)
    assert all(0 <= mean <= 1 for row in plain["systems"].values() for mean, _ in row.values())
    assert results.seeds == 1


def test_the_page_is_one_file_with_pictures_curves_and_both_languages(shown):
    out, _ = shown
    page = (out / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") > 50
    assert "<svg" in page
    assert "水果" in page
    assert not re.findall(r"(?:src|href)=.http", page), "nothing is fetched"
