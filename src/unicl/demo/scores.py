"""What a trained system is asked: which category an unseen drawing shows, which name it has, in two languages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from unicl.data.prompts import templates
from unicl.data.sources import Source
from unicl.evaluate.quick import class_numbers, retrieval_numbers
from unicl.evaluate.retrieval import Pairs
from unicl.evaluate.zeroshot import Truth
from unicl.model import TwoTowers
from unicl.space import Sample

LANGUAGES = ("en", "zh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Drawings that were not trained on: their features, names and categories, and the categories' names."""

    samples: tuple[Sample, ...]
    features: Tensor
    truth: Tensor
    titles: Mapping[str, tuple[str, ...]]
    names: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, source: Source, *, features: Tensor, categories: Mapping[str, str]) -> Self:
        """From a source whose samples have two captions, English and Chinese, and one category."""
        order = sorted(categories)
        number = {name: k for k, name in enumerate(order)}
        return cls(
            samples=source.samples,
            features=features,
            truth=torch.tensor([number[sample.labels[0]] for sample in source.samples]),
            titles={code: tuple(sample.captions[k] for sample in source.samples) for k, code in enumerate(LANGUAGES)},
            names={"en": tuple(order), "zh": tuple(categories[name] for name in order)},
        )


def score(model: TwoTowers, tests: Mapping[str, Trial]) -> dict[str, float]:
    """All columns of the demo's table by name, such as "zero-shot, seen, en"."""
    found: dict[str, float] = {}
    for which, test in tests.items():
        images = model.embed_whole(test.features)
        for code in LANGUAGES:
            classes = model.classifier(test.names[code], templates=templates(code))
            zero_shot = class_numbers(model.see(images, view="classes"), classes, truth=Truth.of(test.truth))
            texts, pairs = _distinct(test.titles[code])
            found_both = retrieval_numbers(model.see(images, view="instances"), model.embed_text(texts), pairs=pairs)
            found[f"zero-shot, {which}, {code}"] = zero_shot["zeroshot/top1"]
            cut = "r1" if which == "seen" else "r10"
            for short, direction in (("image to text", "image_to_text"), ("text to image", "text_to_image")):
                found[f"{short} {cut.upper().replace('R', 'R@')}, {which}, {code}"] = found_both[
                    f"retrieval/{direction}/{cut}"
                ]
    return found


def _distinct(titles: tuple[str, ...]) -> tuple[tuple[str, ...], Pairs]:
    texts = tuple(dict.fromkeys(titles))
    place = {text: k for k, text in enumerate(texts)}
    return texts, Pairs(images=torch.arange(len(titles)), texts=torch.tensor([place[title] for title in titles]))
