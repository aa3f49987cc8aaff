import numpy as np
import pytest
import torch

from unicl.data.collate import Collator, Drawn, class_texts, keys_of
from unicl.data.keys import class_key, sample_key, text_key
from unicl.data.text import train_tokenizer
from unicl.space import Sample, TextType

TOKENIZER = train_tokenizer(["a photo of a cat", "a dog", "two cats", "狗"], vocab_size=300, context=16)
PIXELS = torch.zeros(3, 4, 4, dtype=torch.uint8)


def drawn(id, *, captions=(), labels=(), image=PIXELS, namespace="n", **more):
    sample = Sample(id=id, captions=captions, labels=labels, namespace=namespace)
    caption = captions[0] if captions else None
    return Drawn(sample=sample, source="s", caption=caption, image=image, **more)


def batch(mode, *samples, prompts="en-short"):
    return Collator(mode=mode, texts=class_texts(prompts), tokenizer=TOKENIZER)(samples, rng_key=(0, 4, 7))


def entries(keys):
    return {(r, k): round(w, 6) for r, k, w in zip(*(x.tolist() for x in (keys.rows, keys.keys, keys.weights)))}


def test_sample_mode_gives_every_text_the_key_of_its_sample():
    made = batch(
        "sample", drawn("1", captions=("two cats",)), drawn("2", captions=("two cats",)), drawn("3", labels=("cat",))
    )
    own = [sample_key("s", i) for i in "123"]
    assert entries(made.image_keys) == dict.fromkeys(enumerate(own), 1) == entries(made.text_keys)
    assert made.text_counts.tolist() == [1, 1, 1]
    assert len(made.tokens) == 2, "the equal captions are encoded once"
    assert made.text_index.tolist() == [0, 0, 1]


def test_label_mode_merges_the_class_texts_and_counts_them():
    cats = [drawn(i, labels=("cat",)) for i in "12"]
    made = batch("label", *cats, drawn("3", captions=("a dog",)), drawn("4", labels=("0",)))
    assert made.text_counts.tolist() == [2, 1, 1]
    cat, zero = class_key("n", "cat"), class_key("n", "0")
    assert made.image_keys.keys.tolist() == [cat, cat, sample_key("s", "3"), zero]
    assert made.text_keys.keys.tolist() == [cat, sample_key("s", "3"), zero]


def test_text_mode_makes_equal_strings_one_thing():
    made = batch("text", drawn("1", captions=("A  Dog",)), drawn("2", captions=("a dog", "two cats")))
    assert entries(made.image_keys)[0, text_key("a dog")] == entries(made.image_keys)[1, text_key("a dog")] == 1
    assert (1, text_key("two cats")) in entries(made.image_keys), "also the caption that was not drawn belongs to it"


def test_typed_mode_gives_an_image_all_its_keys_and_a_text_its_own():
    made = batch(
        "typed", drawn("1", captions=("a dog",), labels=("cat", "pet")), drawn("2", image=None, captions=("two cats",))
    )
    assert made.image_keys.size == 1
    assert made.image_keys.having(TextType.CAPTION).all()
    assert made.image_keys.having(TextType.CLASS).all()
    assert made.text_keys.types.tolist() == [0, 1, 1, 0]
    assert made.text_keys.keys.tolist() == [
        text_key("a dog"),
        class_key("n", "cat"),
        class_key("n", "pet"),
        text_key("two cats"),
    ]


def test_image_only_and_text_only_samples_flow():
    made = batch("typed", drawn("1"), drawn("2", image=None, captions=("a dog",)))
    assert (made.images.shape[0], made.image_keys.size, len(made.text_index)) == (1, 1, 1)
    assert len(made.image_keys.rows) == 0
    alone = batch("typed", drawn("1", image=None, captions=("a dog",)))
    assert alone.images.shape[0] == 0


def test_equal_labels_of_two_namespaces_stay_two_classes():
    made = batch("label", drawn("1", labels=("cat",), namespace="a"), drawn("2", labels=("cat",), namespace="b"))
    assert len(set(made.image_keys.keys.tolist())) == 2
    assert len(made.text_index) == 2


def test_all_samples_of_a_class_show_one_text_in_a_step_and_another_in_the_next():
    collator = Collator(mode="label", texts=class_texts("en"), tokenizer=TOKENIZER)
    same = [drawn(str(k), labels=("cat",)) for k in range(20)]
    steps = [collator(same, rng_key=(0, 4, step)) for step in range(12)]
    assert all(len(made.tokens) == 1 for made in steps)
    assert len({tuple(made.tokens[0].tolist()) for made in steps}) > 1


def test_a_class_with_names_in_two_languages_uses_templates_of_each():
    texts = class_texts("auto", names={"dog": ("dog", "狗")})
    said = {texts.draw("dog", rng=np.random.default_rng(k)) for k in range(60)}
    assert any("狗" in text and "dog" not in text for text in said)
    assert any("dog" in text and "狗" not in text for text in said)
    assert not any("狗" in text and "photo" in text for text in said)


def test_mixed_samples_share_keys_on_both_sides():
    other = drawn("2", labels=("dog",))
    made = batch("label", drawn("1", labels=("cat",), partner=other, share=0.75), drawn("2", labels=("dog",)))
    cat, dog = class_key("n", "cat"), class_key("n", "dog")
    assert entries(made.image_keys) == {(0, cat): 0.75, (0, dog): 0.25, (1, dog): 1.0} == entries(made.text_keys)


def test_without_a_tokenizer_there_are_no_texts():
    made = Collator(mode="label", texts=class_texts("en"), tokenizer=None)([drawn("1", labels=("a",))], rng_key=(0,))
    assert made.tokens.shape[0] == made.text_keys.size == 0
    assert made.image_keys.size == 1


def test_ids_name_the_samples():
    assert batch("sample", drawn("x/1.jpg")).ids == ("s/x/1.jpg",)


@pytest.mark.parametrize("mode", ["sample", "label", "text", "typed"])
def test_an_empty_batch_is_a_batch(mode):
    made = batch(mode)
    assert (made.images.shape[0], made.image_keys.size, made.text_keys.size) == (0, 0, 0)


def test_equal_entries_of_a_row_come_together():
    keys = keys_of([[(5, TextType.CLASS, 0.5), (5, TextType.CLASS, 0.25)]])
    assert entries(keys) == {(0, 5): 0.75}
