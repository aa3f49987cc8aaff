"""An explanation as one HTML page that needs nothing else: words to point at, heat over the picture, its numbers."""

import base64
import io
import json
from importlib.resources import files
from typing import Final

import jinja2
from markupsafe import Markup
from PIL import Image

from unicl.use.explain.heat import STRENGTH, Range, Scale, colours, explained_range, layer, levels, ranges
from unicl.use.explain.run import Explanation
from unicl.use.explain.view import View, facts, index_words, number, shown, sought, title
from unicl.use.files import printable

SIDE: Final = 900
"""The longer side of the picture in pixels."""
FINE: Final = 144
"""Pixels a side of a layer of heat, which a browser enlarges smoothly."""
QUALITY: Final = 86


def page(explanation: Explanation, *, scale: Scale = "joint") -> str:
    """The page; without scripts, words can still be chosen and every picture is there."""
    loader = jinja2.FunctionLoader(lambda name: (files("unicl.use.explain") / "pages" / name).read_text("utf-8"))
    rules = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rules.filters["number"] = number
    view, each = shown(explanation, box=(SIDE, SIDE)), ranges(explanation, scale=scale)
    text = rules.get_template("explain.html").render(
        explanation=explanation,
        title=title(explanation),
        facts=facts(explanation),
        view=view,
        box=_box(view),
        layers=[_layer(explanation, None, each.whole), *(_layer(explanation, n, r) for n, r in enumerate(each.words))],
        picture=_inline(view.picture, "JPEG"),
        legend=explained_range(explanation, scale=scale),
        sought="" if explanation.index is None else sought(explanation.index),
        parts="" if explanation.index is None else index_words(explanation.index),
        ends=[number(each.words[0].low), number(each.words[0].high)] if scale == "joint" else ["lowest", "highest"],
        ramp=_ramp(),
        strength=STRENGTH,
        data=_data(explanation),
    )
    return printable(text)


def _data(explanation: Explanation) -> Markup:
    """What the page's script reads: what may stand in a script element without ending it."""
    height, width = explanation.whole.shape
    index = explanation.index
    content = {
        "words": explanation.words,
        "rows": height,
        "columns": width,
        "heat": [[_short(value) for value in word.flatten().tolist()] for word in explanation.heat],
        "best": None if index is None else index.best.flatten().tolist(),
        "parts": None if index is None else index.parts,
    }
    return Markup(json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"))


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _box(view: View) -> dict[str, float]:
    """The square that the model saw, in percent of the picture."""
    (width, height), area = view.picture.size, view.area
    return {
        "left": 100 * area.left / width,
        "top": 100 * area.top / height,
        "width": 100 * (area.right - area.left) / width,
        "height": 100 * (area.bottom - area.top) / height,
    }


def _layer(explanation: Explanation, word: int | None, shown_range: Range) -> str:
    heat = explanation.whole if word is None else explanation.heat[word]
    return _inline(layer(levels(heat, shown_range, size=(FINE, FINE))), "PNG")


def _ramp() -> str:
    palette, cover = colours()
    places = [0, 32, 64, 96, 128, 160, 192, 224, 255]
    stops = (f"rgb({','.join(map(str, palette[n]))},{cover[n] / 255 * STRENGTH:.2f}) {n / 2.55:.0f}%" for n in places)
    return f"linear-gradient(90deg, {', '.join(stops)})"


def _inline(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    if kind == "JPEG":
        picture.convert("RGB").save(file, kind, quality=QUALITY)
    else:
        picture.save(file, kind, optimize=True, transparency=picture.info["transparency"])
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()
