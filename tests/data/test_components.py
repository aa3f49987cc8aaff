"""Prompts of components: FILIP's twelve sets, GLoRIA's class prompts, and a user's own lists."""

import math

import pytest

from unicl.data.components import CLASS_SETS, class_prompts, class_set, filip_sets, product_of
from unicl.data.formats.chexpert import FINDINGS
from unicl.data.prompts import prompt_set, set_names
from unicl.errors import UserError


def test_filips_sets_have_as_many_templates_as_their_lists_multiply_to() -> None:
    sizes = {name.removeprefix("filip-"): len(several) for name, several in filip_sets().items()}
    assert sizes == {
        "filip": 5 * 1 * 6,
        "cifar10": 7 * 6,
        "cifar100": 7 * 6,
        "caltech101": 4 * 5,
        "cars": 4 * 2 * 6,
        "flowers": 6 * 2 * 4,
        "food101": 3 * 2 * 7,
        "sun397": 8 * 6,
        "dtd": 2 * 3 * 5,
        "aircraft": 4 * 3 * 5,
        "pets": 3 * 2 * 5,
        "eurosat": 5 * 2 * 4,
    }


def test_filips_sentences_have_one_place_for_the_name_and_no_stray_marks() -> None:
    for several in filip_sets().values():
        assert len(set(several)) == len(several)
        for sentence in several:
            assert sentence.count("{}") == 1
            assert sentence.endswith(".")
            assert not any(stray in sentence for stray in (" ,", ",.", "..", "  ", ". .", "none"))


def test_filips_form_is_prefix_label_description_suffix() -> None:
    sets = filip_sets()
    assert sets["filip"][0] == "a photo of a {}. I like it."
    assert sets["filip-pets"][0] == "a photo of my {}, a type of pet."
    assert sets["filip-pets"][-1] == "a good photo of my {}, a type of dog or cat. It's beautiful."
    assert sets["filip-eurosat"][0] == "a photo of a {}."


def test_every_combination_stands_once_the_last_list_changing_fastest() -> None:
    found = product_of({"suffix": ["Wow!", "none"], "prefix": ["a", ""], "description": []}, where="x")
    assert found == ("a {}. Wow!", "a {}.", "{}. Wow!", "{}.")
    assert product_of({"description": ["a bird"]}, where="x") == ("{}, a bird.",)


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ({"prefx": ["a"]}, "own: there is no component 'prefx' .did you mean 'prefix'"),
        ({}, "own: there are no components"),
        ({"prefix": "a photo of a"}, "own: 'prefix' holds the text 'a photo of a', but a list of texts"),
        ({"prefix": {"a": 1}}, "own: 'prefix' holds an object"),
        ({"suffix": ["nice", 3]}, "own: 'suffix' has the component 3, but a text"),
        ({"prefix": ["a photo of {}"]}, r"own: the component 'a photo of \{\}' has \{\}"),
    ],
)
def test_a_broken_list_of_components_says_what_is_wrong(lists: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        product_of(lists, where="own")


def test_glorias_prompts_are_severity_subtype_and_location_of_five_classes() -> None:
    prompts = class_set("gloria")
    assert {name: len(several) for name, several in prompts.items()} == {
        "Atelectasis": 3 * 7 * 10,
        "Cardiomegaly": 15,
        "Consolidation": 4 * 6 * 8,
        "Edema": 6 * 3,
        "Pleural Effusion": 6 * 3 * 3,
    }
    assert prompts["Atelectasis"][70] == "mild subsegmental atelectasis at the mid lung zone"
    assert "small left bilateral pleural effusion" in prompts["Pleural Effusion"]
    assert all(text == " ".join(text.split()) for several in prompts.values() for text in several)


def test_classes_have_sentences_or_lists_that_are_joined_in_their_order() -> None:
    found = class_prompts({"cat": ["a cat", "my  cat"], "dog": {"size": ["none", "big"], "what": ["dog"]}}, where="x")
    assert found == {"cat": ("a cat", "my cat"), "dog": ("dog", "big dog")}
    assert math.prod(map(len, found.values())) == 4


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ([], "own: 'classes' holds a list"),
        ({}, "own: 'classes' holds an object"),
        ({"cat": 3}, "own: class 'cat', 'prompts' holds 3"),
        ({"cat": []}, "own: class 'cat' has an empty prompt"),
        ({"cat": {"size": ["none"]}}, "own: class 'cat' has an empty prompt"),
        ({"cat": {"size": "big"}}, "own: class 'cat', 'size' holds the text 'big'"),
    ],
)
def test_broken_class_prompts_say_what_is_wrong(classes: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        class_prompts(classes, where="own")


def test_medclips_prompts_have_a_negative_class_and_never_say_pneumonia() -> None:
    covid, rsna = class_set("medclip-covid"), class_set("medclip-rsna")
    assert {name: len(several) for name, several in covid.items()} == {"COVID": 2 * 1 * 2 * 3, "Normal": 8}
    # Six adjectives, four subtypes, thirteen places, but for the combination of nothing.
    assert {name: len(several) for name, several in rsna.items()} == {"Pneumonia": 6 * 4 * 13 - 1, "Normal": 8}
    assert "patchy ground glass opacity in peripheral" in covid["COVID"]
    assert "round bacterial at the lung bases" in rsna["Pneumonia"]
    assert "round" in rsna["Pneumonia"]
    assert not any("pneumonia" in text for text in rsna["Pneumonia"])
    assert covid["Normal"] == rsna["Normal"]


def test_all_fourteen_findings_have_prompts_that_differ() -> None:
    prompts = class_set("chexpert")
    assert tuple(prompts) == FINDINGS
    several = [text for each in prompts.values() for text in each]
    assert len(set(several)) == len(several)
    assert "small pleural effusion on the left" in prompts["Pleural Effusion"]
    assert min(len(each) for each in prompts.values()) >= 8


@pytest.mark.parametrize("name", CLASS_SETS)
def test_class_sets_can_be_drawn_and_chosen_by_name(name: str) -> None:
    drawn = prompt_set(f"{name}:5:1")
    assert isinstance(drawn, dict)
    assert drawn == prompt_set(f"{name}:5:1")
    assert all(len(several) == 5 for several in drawn.values())
    assert name in set_names()
