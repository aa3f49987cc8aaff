import json
from dataclasses import replace

import pytest

from tiny import tiny
from unicl.data.sources import load_all
from unicl.data.words.tags import Tags
from unicl.errors import UserError
from unicl.objective.terms import CaptionSettings
from unicl.prepare import hiding, tagged_sources
from unicl.towers.text import build_tokenizer
from unicl.train.ranks import Ranks


def captions(folder, *texts):
    (folder / "t.csv").write_text("\n".join(["text", *texts, ""]), encoding="utf-8")
    return load_all([str(folder / "t.csv")])[0]


def test_words_are_hidden_where_a_term_looks_for_them_and_no_other_reads_them():
    masked, written = (CaptionSettings(task=task, name=task) for task in ("masked", "captioning"))
    recipe = tiny("virtex")
    tokenizer = build_tokenizer(recipe.words, texts=["a red square"])
    assert hiding(recipe, tokenizer) is None
    hide = hiding(replace(recipe, terms=(masked,)), tokenizer)
    assert (hide.mask, hide.size) == (tokenizer.vocab_size, tokenizer.vocab_size + 1)
    with pytest.raises(UserError, match="'captioning' writes captions whole, but 'masked' hides"):
        hiding(replace(recipe, terms=(masked, written)), tokenizer)


def test_tags_are_found_once_and_a_run_that_goes_on_reads_them(tmp_path):
    source = captions(tmp_path, "the dog sleeps", "the cat sleeps")
    recipe = replace(tiny("tag_prediction"), tags=Tags(by="nouns", count=9))
    given = {"tokenizer": None, "out": tmp_path, "ranks": Ranks()}
    (first,) = tagged_sources(recipe, [source], **given)
    assert [s.labels for s in first.samples] == [("dog",), ("cat",)]
    (tmp_path / "tags.json").write_text(json.dumps({"the dog sleeps": ["horse"]}), encoding="utf-8")
    (again,) = tagged_sources(recipe, [source], **given)
    assert [s.labels for s in again.samples] == [("horse",), ()]
    assert tagged_sources(tiny("clip"), [source], **given) == [source]


def test_clusters_of_captions_need_something_that_reads_them(tmp_path):
    recipe = replace(tiny("tag_prediction"), tags=Tags(by="clusters", count=2), words=None)
    source = captions(tmp_path, "a")
    with pytest.raises(UserError, match="no language model reads them"):
        tagged_sources(recipe, [source], None, out=tmp_path, ranks=Ranks())
