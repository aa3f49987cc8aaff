from collections import Counter
from pathlib import Path

import pytest

from unicl.data.sources import Source
from unicl.data.words.phrases import parse
from unicl.errors import UserError
from unicl.space import Sample
from unicl.use.concepts import count_concepts

DOGS = [
    ("a dog on the grass", "1"),
    ("a dog on the grass", "2"),
    ("two dogs and a cat", "3"),
    ("a dog and another dog", "3"),
    ("seen from above", "4"),
    ("Красный дом", "5"),
    ("a cat", None),
]


def source(name, samples):
    return Source(name=name, path=Path(name), format="csv", samples=tuple(samples), guessed={}, root=Path())


def captioned(rows=DOGS, *, name="captions"):
    samples = [
        Sample(id=str(k), image=None if image is None else Path(image), captions=(text,))
        for k, (text, image) in enumerate(rows)
    ]
    return source(name, samples)


def labelled(name="photos"):
    labels = ["Cat", "Cat", "horse"]
    return source(name, [Sample(id=str(k), image=Path(f"p{k}"), labels=(label,)) for k, label in enumerate(labels)])


def numbers(counted):
    return {concept.name: (concept.seen, concept.images) for concept in counted.concepts}


def test_nouns_seen_often_enough_are_concepts_with_their_images():
    [counted] = count_concepts([captioned()], least=2)
    assert numbers(counted) == {"dog": (5, 3), "grass": (2, 2), "cat": (2, 1)}
    assert (counted.images, counted.texts, counted.bare, counted.unread) == (5, 7, 1, 1)
    assert counted.images_per_concept == pytest.approx(5 / 3)
    [fewer] = count_concepts([captioned()], least=5)
    assert numbers(fewer) == {"dog": (5, 3)}
    assert fewer.bare == 2


def test_six_times_is_the_default_as_in_unicls_table():
    rows = [("a dog and a cat", str(k)) for k in range(5)] + [("a dog", "9")]
    [counted] = count_concepts([captioned(rows)])
    assert numbers(counted) == {"dog": (6, 6)}


def test_every_class_of_labelled_data_is_a_concept():
    [counted] = count_concepts([labelled()])
    assert numbers(counted) == {"cat": (2, 2), "horse": (1, 1)}
    assert {concept.kind for concept in counted.concepts} == {"class"}
    assert (counted.texts, counted.bare, counted.vocabulary) == (0, 0, 2)
    assert counted.images_per_concept == 1.5


def test_sources_are_counted_each_and_together():
    captions, photos, together = count_concepts([captioned(), labelled()], least=5)
    assert numbers(captions) == {"dog": (5, 3)}
    assert numbers(photos) == {"cat": (2, 2), "horse": (1, 1)}
    assert numbers(together) == {"dog": (5, 3), "cat": (4, 3), "horse": (1, 1)}
    assert (together.name, together.images, together.texts) == ("together", 8, 7)
    assert together.vocabulary == len({"cat", "horse"} | words(DOGS))
    twice = count_concepts([captioned(), captioned(name="again")], least=10)[-1]
    assert numbers(twice) == {"dog": (10, 3)}


def words(rows):
    return {
        word.text.casefold()
        for parsed in parse([text for text, _ in rows])
        for word in (parsed.words if parsed else ())
        if any(letter.isalpha() for letter in word.text)
    }


def test_counts_are_those_of_plain_loops():
    things, places = ("dog", "cat", "bird"), ("house", "tree", "river")
    rows = [(f"a {a} and a {b} near the {c}", str((k * 7) % 11)) for k, (a, b, c) in enumerate(
        (a, b, c) for a in things for b in things for c in places
    )]  # fmt: skip
    [counted] = count_concepts([captioned(rows)], least=1)
    seen, images = Counter(), {}
    for text, image in rows:
        [parsed] = parse([text])
        for noun in parsed.nouns():
            seen[noun] += 1
            images.setdefault(noun, set()).add(image)
    assert numbers(counted) == {noun: (seen[noun], len(images[noun])) for noun in seen}
    phrases = {phrase for text, _ in rows for phrase in next(parse([text])).phrases}
    assert counted.phrases == len(phrases)


def test_data_without_texts_and_labels_is_named():
    bare = source("photos", [Sample(id="1", image=Path("1"))])
    with pytest.raises(UserError, match="photos: no captions and no labels"):
        count_concepts([bare])
    with pytest.raises(UserError, match="least is 0"):
        count_concepts([captioned()], least=0)
