from pathlib import Path

import torch

from tiny import tiny
from unicl.data.sources import Source
from unicl.demo.scores import Trial, score
from unicl.run import build_model
from unicl.space import Sample
from unicl.towers.text import build_tokenizer


def test_a_model_is_asked_in_both_languages_about_both_sets():
    titles = [("red apple", "红苹果"), ("pear", "梨"), ("boat", "船"), ("red apple", "红苹果")]
    labels = ["fruit", "fruit", "vehicle", "fruit"]
    samples = tuple(
        Sample(id=str(k), captions=both, labels=(label,))
        for k, (both, label) in enumerate(zip(titles, labels, strict=True))
    )
    source = Source(name="x", path=Path(), format="csv", samples=samples, weight=1.0, guessed={}, notes=(), root=Path())
    categories = {"fruit": "水果", "vehicle": "车辆"}
    recipe = tiny("itl")
    tokenizer = build_tokenizer(recipe.text, texts=["a red apple pear boat fruit vehicle 红苹果梨船水果车辆"])
    model = build_model(recipe, [source], tokenizer=tokenizer).eval()
    test = Trial.of(source, features=torch.randn(4, model.image.feature_width), categories=categories)
    assert test.truth.tolist() == [0, 0, 1, 0]
    found = score(model, {"seen": test, "unseen": test})
    assert len(found) == 12
    assert found["text to image R@10, unseen, zh"] == 1.0, "ten answers hold all four"
