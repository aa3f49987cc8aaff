from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from unicl.data.sources import Source
from unicl.data.words.phrases import parse
from unicl.data.words.tags import NAMESPACE, Tags, captions_of, most_frequent, tagged, tags_by_cluster, tags_by_speech
from unicl.errors import UserError
from unicl.space import Sample

CAPTIONS = Counter({"two black dogs run": 3, "a dog on the grass": 2, "a white cat sleeps": 1, "above": 1})


def tags(speech, count=100):
    return tags_by_speech(CAPTIONS, parse(list(CAPTIONS)), speech=speech, count=count)


def test_each_kind_of_tags_has_more_parts_of_speech():
    assert tags("nouns")["two black dogs run"] == ("dog",)
    assert tags("adjectives")["two black dogs run"] == ("black", "dog")
    assert tags("verbs")["two black dogs run"] == ("black", "dog", "run")
    assert tags("verbs")["above"] == ()


def test_the_most_frequent_are_kept_counted_by_rows():
    assert set(sum(tags("adjectives", 2).values(), ())) == {"dog", "black"}
    assert most_frequent(Counter(b=2, a=2, c=3), 2) == {"a", "c"}


def test_captions_without_such_words_are_told():
    numbers = Counter({"1 2 3": 4})
    with pytest.raises(UserError, match="no caption has a noun or an adjective"):
        tags_by_speech(numbers, parse(list(numbers)), speech="adjectives", count=5)
    with pytest.raises(UserError, match="1 tags cannot tell"):
        Tags(count=1)


def source(samples):
    return Source(name="s", path=Path("s"), format="csv", samples=tuple(samples), guessed={}, root=Path())


def test_an_image_has_the_tags_of_all_its_captions_and_no_label_of_its_own():
    one = Sample(id="1", image=Path("1"), captions=("two black dogs run", "a dog on the grass"), labels=("pet",))
    other = Sample(id="2", image=Path("2"), labels=("pet",), namespace="mine")
    found = tagged(source([one, other]), tags("nouns"))
    assert [sample.labels for sample in found.samples] == [("dog", "grass"), ()]
    assert {sample.namespace for sample in found.samples} == {NAMESPACE}
    assert captions_of([source([one, one])]) == Counter({"two black dogs run": 2, "a dog on the grass": 2})
    with pytest.raises(UserError, match=r"'PATH\?text=COLUMN'"):
        captions_of([source([other])])


def test_clusters_part_what_lies_apart_and_are_the_same_again():
    captions = Counter({f"text {k}": 1 for k in range(40)})
    rng = np.random.default_rng(0)
    rows = np.repeat([[0.0, 0.0], [9.0, 9.0]], 20, axis=0) + rng.normal(size=(40, 2))

    def vectors(texts):
        assert texts == list(captions)
        return rows.astype(np.float32)

    found = tags_by_cluster(captions, count=2, vectors=vectors, seed=1)
    halves = [{found[f"text {k}"] for k in range(start, start + 20)} for start in (0, 20)]
    assert [len(half) for half in halves] == [1, 1]
    assert halves[0] != halves[1]
    assert found == tags_by_cluster(captions, count=2, vectors=vectors, seed=1)
    few = Counter({"a": 1, "b": 1})
    assert len(set(tags_by_cluster(few, count=9, vectors=lambda texts: rows[: len(texts)]).values())) == 2
