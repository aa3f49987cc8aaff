"""The demo's page: the table, the curves, searches and predictions with their pictures; one file, no network."""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment
from PIL import Image
from torch import Tensor

from unicl.data.prompts import templates
from unicl.data.sources import read_bytes
from unicl.demo.scores import Trial
from unicl.demo.table import Results
from unicl.model import TwoTowers
from unicl.space import Sample

QUERIES = ("red fruit", "sailing boat", "musical instrument", "水果", "雪山", "乐器")
SHOWN = ("clip", "unicl", "itl")
TOP = 8
PREDICTED = 8


def write_page(
    path: Path,
    results: Results,
    *,
    models: Mapping[str, TwoTowers],
    tests: Mapping[str, Trial],
    curves: Mapping[str, Sequence[float]],
) -> Path:
    """Write the page and return where it is."""
    test = tests["seen"]
    source = files("unicl.demo").joinpath("page.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(source)
    content = page.render(
        results=results,
        curves=_curves(curves),
        searches=[_search(query, test, models) for query in QUERIES],
        predictions=_predictions(test, models),
    )
    path.write_text(content, encoding="utf-8")
    return path


def _search(query: str, test: Trial, models: Mapping[str, TwoTowers]) -> dict[str, Any]:
    rows = []
    for name in SHOWN:
        model = models[name]
        images = model.see(model.embed_whole(test.features), view="instances")
        scores = images @ model.embed_text([query])[0]
        top = scores.topk(TOP)
        rows.append({"system": name, "found": [_shown(test, k, s) for s, k in zip(*_lists(top), strict=True)]})
    return {"query": query, "rows": rows}


def _predictions(test: Trial, models: Mapping[str, TwoTowers]) -> list[dict[str, Any]]:
    """The first samples of categories spread over all, and what each system takes them for."""
    chosen = torch.linspace(0, len(test.samples) - 1, PREDICTED).long().tolist()
    said = {name: _classes(models[name], test, chosen) for name in SHOWN}
    return [
        {
            "picture": _picture(test.samples[k]),
            "title": test.titles["en"][k],
            "true": test.names["en"][int(test.truth[k])],
            "said": [(name, said[name][row]) for name in SHOWN],
        }
        for row, k in enumerate(chosen)
    ]


def _classes(model: TwoTowers, test: Trial, chosen: list[int]) -> list[str]:
    images = model.see(model.embed_whole(test.features[chosen]), view="classes")
    vectors = model.classifier(test.names["en"], templates=templates("en"))
    return [test.names["en"][k] for k in (images @ vectors.T).argmax(1).tolist()]


def _shown(test: Trial, k: int, score: float) -> dict[str, Any]:
    return {"picture": _picture(test.samples[k]), "title": test.titles["en"][k], "score": score}


def _lists(top: Any) -> tuple[list[float], list[int]]:
    values: Tensor = top.values
    return values.tolist(), top.indices.tolist()


def _picture(sample: Sample) -> str:
    assert sample.image is not None
    image = Image.open(io.BytesIO(read_bytes(sample.image))).convert("RGBA")
    image.thumbnail((64, 64))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _curves(curves: Mapping[str, Sequence[float]]) -> str:
    """The losses of the first seed as an SVG; they are of different objectives, so only their shapes compare."""
    import matplotlib as mpl

    mpl.use("Agg")
    # A fixed salt and no date make the file the same on every run.
    with mpl.rc_context({"svg.hashsalt": "unicl", "svg.fonttype": "none", "font.size": 9}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for name, losses in curves.items():
            axes.plot(range(1, len(losses) + 1), losses, label=name, linewidth=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]
