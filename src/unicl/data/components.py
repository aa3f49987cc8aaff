"""Prompts made of components: every combination of lists, for all classes (FILIP) or class by class (GLoRIA)."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import product
from typing import Final

from unicl.errors import UserError, suggest

PLACES: Final = ("prefix", "description", "suffix")
"""Where FILIP's components stand: ``[prefix] {}, [description]. [suffix].``"""
CLASSES: Final = "classes"
"""The key of a file that gives classes prompts of their own."""
CLASS_SETS: Final = ("gloria", "chexpert", "medclip-covid", "medclip-rsna")
"""The sets of `class_set`."""
NONE: Final = "none"
"""The empty component."""

_STOPS: Final = (".", "!", "?", "。", "！", "？")


def filip_sets() -> dict[str, tuple[str, ...]]:
    """FILIP's templates for twelve data sets (appendix) by name: ``filip`` is ImageNet's, then ``filip-cifar10``, ...

    The appendix writes "a photo of a (many)" and "perfume/fragrance" for Flowers: read here as two components each.
    """
    content: dict[str, dict[str, list[str]]] = json.loads(_shipped("filip.json"))
    return {
        "filip" if name == "imagenet" else f"filip-{name}": product_of(lists, where=f"filip.json, {name!r}")
        for name, lists in content.items()
    }


def class_set(name: str) -> dict[str, tuple[str, ...]]:
    """A set of prompts of classes' own, one of `CLASS_SETS`: severity, subtype and location, in every combination.

    * ``gloria``: GLoRIA's for five classes of CheXpert, as released, with its misspellings, the one that stands twice,
      and the order of words of Pleural Effusion, such as "small left bilateral pleural effusion". The released code
      draws five a class; MedCLIP's has the same prompts, and draws ten.
    * ``medclip-covid``, ``medclip-rsna``: MedCLIP's for COVID and for Pneumonia (a word that its prompts never say).
      Its negative class comes from sentences that were not released; those of Normal here are ours.
    * ``chexpert``: ours, for CheXpert's fourteen.
    """
    return class_prompts(json.loads(_shipped(f"{name}.json"))[CLASSES], where=f"{name}.json")


def product_of(lists: Mapping[str, object], *, where: str) -> tuple[str, ...]:
    """All combinations of prefixes, descriptions and suffixes, the last changing fastest (FILIP, section 3.2).

    ``none`` or an empty text is the empty component, which leaves neither comma nor blank; so is a list without
    entries, or none at all. Raises `UserError` that begins with ``where`` for a component that is none.
    """
    for key in lists:
        if key not in PLACES:
            raise UserError(
                f"{where}: there is no component {key!r}{suggest(key, PLACES)}; give lists of {', '.join(PLACES)} "
                f"(or {CLASSES!r}: prompts by class)"
            )
    if not lists:
        raise UserError(f"{where}: there are no components; give lists of {', '.join(PLACES)}")
    columns = [_column(lists.get(place, []), where=f"{where}: {place!r}") for place in PLACES]
    marked = next((component for column in columns for component in column if "{}" in component), None)
    if marked is not None:
        raise UserError(f"{where}: the component {marked!r} has {{}}; leave it out, the class name has its place")
    return tuple(_sentence(*each) for each in product(*columns))


def class_prompts(classes: object, *, where: str) -> dict[str, tuple[str, ...]]:
    """The sentences of each class by name: a list of them, or lists of components to join in their order with blanks.

    The combination of empty components alone is none. Raises `UserError` that begins with ``where`` for a class
    without prompts.
    """
    if not isinstance(classes, dict) or not classes:
        raise UserError(f"{where}: {CLASSES!r} holds {_kind(classes)}, but an object of class names was wanted")
    return {name: _of_class(given, where=f"{where}: class {name!r}") for name, given in classes.items()}


def _of_class(given: object, *, where: str) -> tuple[str, ...]:
    lists = given if isinstance(given, dict) else {"prompts": given}
    columns = [_column(each, where=f"{where}, {key!r}") for key, each in lists.items()]
    found = tuple(filter(None, (" ".join(filter(None, words)) for words in product(*columns))))
    if not found:
        raise UserError(f"{where} has an empty prompt; give at least one list without {NONE!r}")
    return found


def _column(given: object, *, where: str) -> tuple[str, ...]:
    if not isinstance(given, list):
        raise UserError(f"{where} holds {_kind(given)}, but a list of texts was wanted")
    for component in given:
        if not isinstance(component, str):
            raise UserError(f"{where} has the component {component!r}, but a text was wanted")
    plain = [" ".join(component.split()) for component in given]
    return tuple("" if component == NONE else component for component in plain) or ("",)


def _sentence(prefix: str, description: str, suffix: str) -> str:
    label = f"{prefix} {{}}" if prefix else "{}"
    first = _stopped(f"{label}, {description}" if description else label)
    return f"{first} {_stopped(suffix)}" if suffix else first


def _stopped(text: str) -> str:
    return text if text.endswith(_STOPS) else f"{text}."


def _kind(given: object) -> str:
    names: Sequence[tuple[type, str]] = ((dict, "an object"), (list, "a list"), (str, f"the text {given!r}"))
    return next((name for kind, name in names if isinstance(given, kind)), repr(given))


def _shipped(name: str) -> str:
    return (files("unicl.data") / "templates" / name).read_text(encoding="utf-8")
