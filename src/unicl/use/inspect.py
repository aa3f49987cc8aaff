"""What a model is: its towers, sizes and parameters, how it sees pictures and reads texts, and where it comes from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from unicl.data.text import Tokenizer
from unicl.model import TwoTowers
from unicl.objective.terms import ContrastSettings
from unicl.towers.heads import Option
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.text import TextSettings, TextTower


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """The image tower; ``features`` is the width before the head, ``parts`` what is said of parts, if anything.

    A picture is scaled to ``scaled`` pixels a side by ``mode`` and ``interpolation``, and the square of ``size`` is cut
    out of its middle; ``mean`` and ``std`` are of pixels from 0 to 1.
    """

    name: str
    size: int
    pool: str
    head: str
    features: int
    parameters: int
    learned: int
    locked: bool
    lora: int
    options: Mapping[str, Option]
    parts: Mapping[str, Option] | None
    mode: str
    scaled: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """The text tower; ``context`` is the longest text in tokens, ``fixed`` whether all texts are padded to it."""

    name: str
    pool: str
    head: str
    features: int
    parameters: int
    learned: int
    locked: bool
    lora: int
    options: Mapping[str, Option]
    parts: Mapping[str, Option] | None
    context: int
    fixed: bool
    tokenizer: str
    entries: int
    end: int
    padding: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a model is.

    * ``parameters``: all of them, in both towers, their heads and the objective; ``learned``: those that train.
    * ``views``: the leading dimensions that each use reads, of ``width``.
    * ``scales``, ``biases``: by term, what scores are multiplied with, and what is added then (SigLIP).
    * ``similarities``: by term, how pictures and texts are compared.
    * ``notes``: what of a checkpoint was left out, remapped or resized, and why.
    """

    origin: str
    recipe: str
    width: int
    parameters: int
    learned: int
    image: ImagePart
    text: TextPart | None
    views: Mapping[str, int]
    scales: Mapping[str, float]
    biases: Mapping[str, float]
    similarities: Mapping[str, str]
    classes: int
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """All of it as a JSON object."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def inspect(model: TwoTowers, *, origin: str = "", notes: Sequence[str] = ()) -> Inspection:
    """What ``model`` is; ``origin`` says where it comes from, ``notes`` what reading it has changed."""
    width, scales = model.settings.width, model.objective.scales()
    views = model.settings.views if model.text is not None else {}
    return Inspection(
        origin=origin,
        recipe=model.settings.recipe,
        width=width,
        parameters=count(model),
        learned=count(model, learned=True),
        image=_image(model.image, model.settings.image),
        text=_text_part(model),
        views={view: dims or width for view, dims in views.items()},
        scales={name: scale.value for name, scale in scales.items()},
        biases={name: float(scale.bias) for name, scale in scales.items() if scale.bias is not None},
        similarities={t.name: t.similarity for t in model.settings.terms if isinstance(t, ContrastSettings)},
        classes=len(model.settings.classes),
        notes=tuple(notes),
    )


def count(module: nn.Module, *, learned: bool = False) -> int:
    """How many parameters a module has, or how many of them learn; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not learned)


def show(inspection: Inspection, console: Console | None = None) -> None:
    """Print it as tables for people."""
    console = console or Console()
    console.print(f"[bold]{escape(inspection.origin or inspection.recipe)}[/bold]")
    console.print(_table("Model", _model_rows(inspection)))
    console.print(_table("Image tower", _image_rows(inspection.image)))
    if inspection.text is not None:
        console.print(_table("Text tower", _text_rows(inspection.text)))
    for note in inspection.notes:
        console.print(f"[yellow]Note:[/yellow] {escape(note)}")


def _image(tower: ImageTower, settings: ImageSettings) -> ImagePart:
    return ImagePart(
        name=settings.name,
        size=settings.size,
        pool=settings.pool,
        head=settings.head,
        features=tower.feature_width,
        parameters=count(tower),
        learned=count(tower, learned=True),
        locked=settings.locked,
        lora=settings.lora,
        options=dict(settings.options),
        parts=None if settings.parts is None else asdict(settings.parts),
        mode=settings.frame.mode,
        scaled=settings.frame.side(settings.size),
        interpolation=settings.frame.interpolation,
        mean=tuple(tower.mean.flatten().tolist()),
        std=tuple(tower.std.flatten().tolist()),
    )


def _text_part(model: TwoTowers) -> TextPart | None:
    if model.text is None or model.settings.text is None or model.tokenizer is None:
        return None
    return _text(model.text, model.settings.text, tokenizer=model.tokenizer)


def _text(tower: TextTower, settings: TextSettings, *, tokenizer: Tokenizer) -> TextPart:
    return TextPart(
        name=settings.name,
        pool=tower.pool,
        head=settings.head,
        features=tower.feature_width,
        parameters=count(tower),
        learned=count(tower, learned=True),
        locked=settings.locked,
        lora=settings.lora,
        options=dict(settings.options),
        parts=None if settings.parts is None else asdict(settings.parts),
        context=tokenizer.context,
        fixed=tokenizer.fixed,
        tokenizer=tokenizer.name,
        entries=tokenizer.vocab_size,
        end=tokenizer.eos_id,
        padding=tokenizer.pad_id,
    )


def _model_rows(inspection: Inspection) -> dict[str, str]:
    scales = {
        name: f"{value:.2f}" + (f" and a bias of {inspection.biases[name]:.2f}" if name in inspection.biases else "")
        for name, value in inspection.scales.items()
    }
    nested = any(dims != inspection.width for dims in inspection.views.values())
    views = [f"{dims} for {view}" for view, dims in inspection.views.items() if nested]
    rows = {
        "recipe": inspection.recipe,
        "parameters": _parameters(inspection.parameters, inspection.learned),
        "embedding": f"{inspection.width} dimensions" + (f" ({', '.join(views)})" if views else ""),
        "scale": ", ".join(value if len(scales) == 1 else f"{value} for {name}" for name, value in scales.items()),
        "compares": _compares(inspection.similarities),
        "classes": f"{inspection.classes:,}" if inspection.classes else "",
    }
    return {name: value for name, value in rows.items() if value}


def _compares(similarities: Mapping[str, str]) -> str:
    """How the terms compare, if it is more than cosines of whole vectors."""
    if set(similarities.values()) <= {"cosine"}:
        return ""
    alone = len(similarities) == 1
    return ", ".join(kind if alone else f"{kind} for {name}" for name, kind in similarities.items())


def _image_rows(part: ImagePart) -> dict[str, str]:
    cut = "" if part.scaled == part.size else f" out of {part.scaled}"
    numbers = [" ".join(f"{value:.4f}" for value in values) for values in (part.mean, part.std)]
    return _tower_rows(part) | {
        "pictures": f"{part.size} x {part.size} pixels{cut} ({part.mode}, {part.interpolation})",
        "mean": numbers[0],
        "deviation": numbers[1],
    }


def _text_rows(part: TextPart) -> dict[str, str]:
    end = "no end mark" if part.end < 0 else f"end mark {part.end}"
    return _tower_rows(part) | {
        "texts": f"{'always' if part.fixed else 'at most'} {part.context} tokens",
        "tokenizer": f"{part.tokenizer}, {part.entries:,} entries, {end}, padding {part.padding}",
    }


def _tower_rows(part: ImagePart | TextPart) -> dict[str, str]:
    options = ", ".join(f"{name} {value}" for name, value in part.options.items())
    state = "locked" if part.locked else f"adapters of rank {part.lora}" if part.lora else ""
    rows = {
        "model": part.name + (f" ({options})" if options else ""),
        "state": state,
        "parameters": _parameters(part.parameters, part.learned),
        "features": f"{part.features} (pool {part.pool}), head {part.head}",
        "parts": "" if part.parts is None else ", ".join(f"{k} {v}" for k, v in part.parts.items() if v is not None),
    }
    return {name: value for name, value in rows.items() if value}


def _parameters(all_of_them: int, learned: int) -> str:
    if not all_of_them:
        return "in the export's files"
    return f"{all_of_them:,}" + ("" if learned == all_of_them else f", of which {learned:,} learn")


def _table(title: str, rows: Mapping[str, str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table
