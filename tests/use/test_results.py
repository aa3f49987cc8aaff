import io
import json

import pytest
from rich.console import Console

from unicl.use.classify import classify
from unicl.use.results import json_lines, show, summary
from unicl.use.search import search


@pytest.fixture
def found(model, photos, tmp_path):
    return search(model, [photos], query="a [red] flower", top=3, cache=tmp_path / "cache")


@pytest.fixture
def classes(model, photos):
    return classify(model, [photos], names=("[bold]flower", "寺庙"))


def printed(results):
    console = Console(file=io.StringIO(), width=200)
    show(results, console)
    return console.file.getvalue()


def test_hits_are_lines_of_json(found):
    rows = [json.loads(line) for line in json_lines(found).splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert rows[0]["path"] == str(found.hits[0].image)
    assert rows[0]["score"] == pytest.approx(found.hits[0].score, abs=1e-6)


def test_classes_are_lines_of_json_with_what_cannot_be_read(classes):
    rows = [json.loads(line) for line in json_lines(classes).splitlines()]
    assert len(rows) == 13
    assert sum(each["probability"] for each in rows[0]["classes"]) == pytest.approx(1, abs=1e-5)
    assert rows[-1]["error"] == "cut off"
    assert "寺庙" in json_lines(classes)


def test_the_table_shows_every_hit_and_takes_names_as_they_are(found, classes):
    text = printed(found)
    assert "a [red] flower" in text
    assert all(hit.id in text and f"{hit.score:.3f}" in text for hit in found.hits)
    assert "[bold]flower" in printed(classes)
    assert "寺庙" in printed(classes)


def test_the_summary_counts_what_was_looked_at(found, classes):
    assert summary(found) == "3 of 12 pictures; 1 cannot be read"
    assert summary(classes) == "12 pictures, 2 classes; 1 cannot be read"


def test_hits_say_which_score_ranked_them(parted, found, photos, tmp_path):
    ranked = search(parted, [photos], query="red", top=3, rerank=5, cache=tmp_path / "cache")
    rows = [json.loads(line) for line in json_lines(ranked).splitlines()]
    assert [(row["by"], row["score"], row["cosine"]) for row in rows] == [
        ("tokenwise", round(hit.score, 6), round(hit.cosine, 6)) for hit in ranked.hits
    ]
    assert summary(ranked) == "3 of 12 pictures; the 5 nearest ranked by tokenwise; 1 cannot be read"
    assert all(f"{hit.cosine:.3f}" in printed(ranked) for hit in ranked.hits)
    assert "cosine" in printed(ranked)
    assert "cosine" not in printed(found)
    assert not any("by" in json.loads(line) for line in json_lines(found).splitlines())


def test_a_search_that_is_left_to_whole_vectors_says_so(parted, photos, tmp_path):
    left = search(parted, [photos], query="red - blue", top=3, cache=tmp_path / "cache")
    assert summary(left).startswith("3 of 12 pictures; ranked by whole vectors, since only one text")
    assert all(json.loads(line)["by"] == "cosine" for line in json_lines(left).splitlines())
    assert "whole vectors" in printed(left)
