import re

import torch
from PIL import Image

from tiny import tiny
from unicl.data.sources import load
from unicl.demo.page import QUERIES, write_page
from unicl.demo.scores import Trial, score
from unicl.demo.table import Results
from unicl.run import build_model
from unicl.towers.text import build_tokenizer


def test_a_page_shows_table_curves_searches_and_predictions(tmp_path):
    rows = ["file,title,title_zh,category"]
    for k in range(10):
        Image.new("P", (20, 20), k).save(tmp_path / f"{k}.png", transparency=b"\x00\x80")
        rows.append(f"{k}.png,thing {k} <b>,东西{k},{'odd' if k % 2 else 'even'}")
    (tmp_path / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    source = load(f"{tmp_path / 't.csv'}?text=title,title_zh&label=category")
    recipe = tiny("itl")
    tokenizer = build_tokenizer(recipe.text, texts=[c for s in source.samples for c in s.captions])
    model = build_model(recipe, [source], tokenizer=tokenizer).eval()
    features = torch.randn(10, model.image.feature_width)
    test = Trial.of(source, features=features, categories={"odd": "单", "even": "双"})
    tests, models = {"seen": test, "unseen": test}, dict.fromkeys(("clip", "unicl", "one space", "itl"), model)
    results = Results.of({(name, 0): score(model, tests) for name in models})
    curves = {name: [3.0, 2.0, 1.0] for name in models}
    first = write_page(tmp_path / "a.html", results, models=models, tests=tests, curves=curves).read_text()
    again = write_page(tmp_path / "b.html", results, models=models, tests=tests, curves=curves).read_text()
    assert first == again
    assert all(query in first for query in QUERIES)
    assert "<b>" not in re.sub(r"<b>thing", "", first).replace("<b>", "", 8), "titles are escaped"
    assert "thing 3 &lt;b&gt;" in first
    assert "<svg" in first
