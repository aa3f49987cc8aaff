import numpy as np
import pytest
import torch

from unicl.data.collate import Collator, Drawn, FindingValues, class_texts, keys_of
from unicl.data.keys import class_key, finding_key, sample_key, text_key
from unicl.data.text import train_tokenizer
from unicl.space import NOTHING, Finding, Sample, TextType

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


SICK = (("Edema", Finding.PRESENT), ("Scar", Finding.UNCERTAIN), ("Mass", Finding.ABSENT))
WELL = (("Edema", Finding.UNMENTIONED), ("Scar", Finding.UNMENTIONED), ("Mass", Finding.UNMENTIONED))
FINDING = int(TextType.FINDING)


def known(id, findings, *, captions=("a dog",), image=PIXELS):
    sample = Sample(id=id, captions=captions, findings=findings)
    return Drawn(sample=sample, source="s", caption=captions[0] if captions else None, image=image)


def collated(*samples, mode="typed", **more):
    collator = Collator(mode=mode, texts=class_texts("en-short"), tokenizer=TOKENIZER, **more)
    return collator(samples, rng_key=(0, 4, 7))


def findings_of(keys):
    return entries(keys.only(TextType.FINDING))


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        (FindingValues(), {"Edema": 1}),
        (FindingValues(absent=-1.0), {"Edema": 1, "Mass": -1}),
        (FindingValues(uncertain=1.0), {"Edema": 1, "Scar": 1}),
        (FindingValues(present=0.0), {"Edema": 0}),
    ],
)
def test_rows_carry_findings_as_the_values_count_them(values, counts):
    made = collated(known("1", SICK), findings=values)
    expected = {(0, finding_key(name)): weight for name, weight in counts.items()}
    assert findings_of(made.image_keys) == expected == findings_of(made.text_keys)


def test_a_row_of_which_nothing_counts_is_still_one_with_findings():
    made = collated(known("1", WELL), known("2", ()))
    assert made.image_keys.having(TextType.FINDING).tolist() == [True, False]
    assert list(findings_of(made.image_keys).values()) == [0.0]


@pytest.mark.parametrize("mode", ["sample", "typed", "text", "label"])
def test_a_text_without_an_image_belongs_to_images_by_its_findings_alone(mode):
    made = collated(known("1", SICK, image=None), known("2", SICK, captions=()), mode=mode)
    assert set(made.text_keys.types.tolist()) == {FINDING}
    assert FINDING in made.image_keys.types.tolist()


def test_a_caption_that_stands_in_a_table_has_the_findings_of_the_table():
    made = collated(known("1", SICK), labelled={text_key("A dog"): WELL})
    assert findings_of(made.image_keys) == {(0, finding_key("Edema")): 1}
    assert findings_of(made.text_keys) == {(0, finding_key("Edema")): 0}


def test_all_texts_stand_there_a_second_time_and_captions_in_other_words():
    samples = (drawn("1", captions=("two cats",), other="cats two"), drawn("2", captions=("a dog",), labels=("cat",)))
    plain, made = collated(*samples), collated(*samples, views=2)
    second = made.text_keys.having(TextType.VIEW)
    assert second.tolist() == [False, True, False, False, True, True]
    assert entries(made.text_keys.select(~second)) == entries(plain.text_keys)
    assert entries(made.text_keys.select(second).besides(TextType.VIEW)) == entries(plain.text_keys)
    assert entries(made.image_keys) == entries(plain.image_keys)
    tokens, mask = TOKENIZER(["cats two"])
    shown = made.tokens[made.text_index[1]]
    assert shown[: mask.sum()].tolist() == tokens[0].tolist()
    # What did not change is encoded once.
    assert len(made.tokens) == 4


def test_captions_say_which_text_is_an_images_own():
    made = collated(
        drawn("1", labels=("cat",)),
        drawn("2", captions=("two cats",)),
        drawn("3", captions=("a dog",), image=None),
        drawn("4", captions=("two cats",), labels=("cat",)),
        captions=True,
    )
    assert made.captions.images.tolist() == [1, 2]
    own = [made.text_index[row] for row in made.captions.texts]
    assert [made.tokens[k].tolist() for k in own] == made.captions.tokens.tolist()
    words = {tuple(row[real].tolist()) for row, real in zip(made.captions.tokens, made.captions.mask)}
    tokens, mask = TOKENIZER(["two cats"])
    assert words == {tuple(tokens[0][mask[0]].tolist())}
    assert (made.captions.wanted == NOTHING).all()


def test_hidden_words_are_hidden_from_the_text_tower_too_and_drawn_by_text_and_step():
    def hide(_, tokens, /, *, rng):
        place = int(rng.integers(1, 3))
        wanted = torch.full_like(tokens, NOTHING)
        wanted[place] = tokens[place]
        return tokens.index_fill(0, torch.tensor([place]), 299), wanted

    samples = [drawn("1", captions=("two cats",)), drawn("2", captions=("a dog",))]
    first, again = (collated(*samples, captions=True, hide=hide) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens)
    assert (first.tokens == 299).sum(1).tolist() == [1, 1]
    assert torch.equal(first.captions.tokens, first.tokens[first.text_index[first.captions.texts]])
    hidden = first.captions.wanted != NOTHING
    plain = TOKENIZER(["two cats", "a dog"])[0]
    assert torch.equal(first.captions.wanted[hidden], plain[hidden])
