"""Model cards: what a folder of weights is, what it was trained on, how good it is, and how to use it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from unicl.config import read_yaml
from unicl.data.sources import Source, load_all
from unicl.errors import UserError
from unicl.towers.weights.published import Published

_LICENCES: Final = ("LICENSE*", "LICENCE*", "License*", "COPYING*")
_REMOTE: Final = "://"


def model_card(
    model: Published,
    *,
    home: Path | None,
    library: str,
    form: str,
    usage: str,
    view: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The README.md of a written model, with the front matter of the Hugging Face hub.

    ``home``: the run folder or model folder that it came from; what is not found there is left out or called unknown.
    ``library`` reads it, in the layout ``form``; ``usage`` is Python; ``view`` the use its vectors are for; ``notes``
    say what the layout could not. Sources are named without their folders, which are nobody's business.
    """
    run = _run_folder(home)
    job = _job(run)
    sources = _sources(job)
    parts = (
        _front(model, library=library, form=form),
        _what(model, job, form=form, view=view),
        _section("How to use it", ["```python", usage, "```"]),
        _section("Preprocessing", _preprocessing(model)),
        _section("Training data", _data(job, sources)),
        _section("Licences of the sources", _licences(job, sources)),
        _section("Metrics", _metrics(run)),
        _section("What to know", [f"* {note}" for note in (*model.notes, *notes)]),
    )
    return "\n".join(part for part in parts if part) + "\n"


def write_card(
    folder: Path,
    *,
    model: Published,
    home: Path | None,
    library: str,
    form: str,
    usage: str,
    view: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write a `model_card` as README.md."""
    path = folder / "README.md"
    content = model_card(model, home=home, library=library, form=form, usage=usage, view=view, notes=notes)
    # A file name that is not UTF-8 carries lone surrogates, which no file can hold.
    path.write_bytes(content.encode("utf-8", "replace"))
    return path


def _front(model: Published, *, library: str, form: str) -> str:
    # Values in JSON's quotes are YAML too, whatever stands in them.
    task = "zero-shot-image-classification" if model.pair else "image-feature-extraction"
    lines = [
        "---",
        f"library_name: {json.dumps(library)}",
        f"pipeline_tag: {task}",
        "license: unknown",
        "tags:",
        *(f"- {tag}" for tag in ("unicl", "image-text", json.dumps(form))),
        "---",
        "",
    ]
    return "\n".join(lines)


def _what(model: Published, job: Mapping[str, Any], *, form: str, view: str | None) -> str:
    recipe = job.get("recipe", {})
    name = recipe.get("name")
    origin = f"the recipe {name}" if name else model.origin
    lines = [f"# {name or 'A published model'}, as {form}", "", f"* made with: {origin}"]
    if view is not None:
        lines.append(f"* vectors for {view}, of {model.width} dimensions")
    lines += [f"* {line}" for line in _towers(model)]
    if job.get("init"):
        lines.append(f"* started from {_name(str(job['init']))}")
    for side in ("image", "text"):
        weights = (recipe.get(side) or {}).get("weights", "random")
        if weights != "random":
            lines.append(f"* the {side} tower started from {_name(str(weights))}")
    made = job.get("made_with") or {}
    if made:
        lines.append(f"* trained with {', '.join(f'{package} {version}' for package, version in made.items())}")
    return "\n".join([*lines, ""])


def _towers(model: Published) -> list[str]:
    lines = []
    for side, settings in (("image", model.image), ("text", model.text)):
        if settings is not None:
            count = sum(value.numel() for key, value in model.state.items() if key.startswith(f"{side}."))
            lines.append(f"{side} tower {_name(settings.name)}, {count:,} numbers")
    if model.scale is not None:
        bias = "" if model.bias is None else f", and {model.bias:.4g} is added"
        lines.append(f"cosines are multiplied by {model.scale:.4g}{bias}")
    return lines


def _preprocessing(model: Published) -> list[str]:
    lines = []
    if model.image is not None:
        frame, size = model.image.frame, model.image.size
        ways = {
            "crop": f"the shorter side is scaled to {frame.side(size)} and the middle cut out",
            "squash": f"scaled to {frame.side(size)} x {frame.side(size)}, whatever its shape",
            "pad": f"the longer side is scaled to {frame.side(size)} and black added",
        }
        lines.append(f"* pictures: {ways[frame.mode]} ({frame.interpolation}), {size} x {size} pixels in the end")
        lines.append(f"* pixels from 0 to 1: mean {_numbers(model.mean)}, deviation {_numbers(model.std)}")
    if model.text is not None:
        lines.append(f"* texts: at most {model.text.context} tokens{', padded to all of them' * model.text.fixed}")
        lines.append(f"* tokenizer: {_tokenizer(model)}")
    return lines


def _tokenizer(model: Published) -> str:
    if model.tokenizer is None:
        return f"{_name(model.text.tokenizer) if model.text else 'none'}, {model.vocab_size:,} entries"
    found = model.tokenizer
    end = f"end mark {found.eos_id}" if found.eos_id >= 0 else "no end mark"
    return f"{found.name}, {found.vocab_size:,} entries, {end}, padding {found.pad_id}, cleaning {found.cleaning!r}"


def _data(job: Mapping[str, Any], sources: Sequence[Source] | None) -> list[str]:
    if not job:
        return ["Unknown: the weights came without the folder of their run."]
    lines = [f"* {_source(source)}" for source in sources or ()]
    if sources is None:
        lines = [f"* {_name(str(spec))} (not at hand when this card was written)" for spec in job.get("data", ())]
    held = [_name(str(spec)) for spec in job.get("val") or ()]
    return [*lines, *([f"* held out for evaluation: {', '.join(held)}"] if held else [])]


def _source(source: Source) -> str:
    labels = {label for sample in source.samples for label in sample.labels}
    labelled = sum(1 for sample in source.samples if sample.labels)
    captioned = sum(1 for sample in source.samples if sample.captions)
    return (
        f"{source.name} ({source.format}): {len(source.samples):,} samples, {captioned:,} with captions, "
        f"{labelled:,} with labels of {len(labels):,} classes"
    )


def _licences(job: Mapping[str, Any], sources: Sequence[Source] | None) -> list[str]:
    if not job:
        return ["Unknown."]
    if sources is None:
        return [f"* {_name(str(spec))}: unknown" for spec in job.get("data", ())]
    return [f"* {source.name}: {_licence(source.root)}" for source in sources]


def _licence(root: Path) -> str:
    """What a file beside the data says, as far as its first line goes."""
    folder = root if root.is_dir() else root.parent
    files = sorted(path for pattern in _LICENCES for path in folder.glob(pattern) if path.is_file())
    if not files:
        return "unknown; ask whoever made it before you pass the weights on"
    text = files[0].read_text(encoding="utf-8", errors="replace")
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"see {files[0].name} beside the data ({_cell(line)[:120]})"


def _metrics(run: Path | None) -> list[str]:
    lines = _evaluated(_json(run / "evaluation.json")) if run is not None else []
    during = {} if run is None else _json(run / "run.json").get("metrics") or {}
    if during:
        lines += ["While training:", "", "| metric | value |", "| --- | ---: |"]
        lines += [f"| {_cell(key)} | {float(value):.4g} |" for key, value in during.items()]
    loss = None if run is None else _last_loss(run / "metrics.jsonl")
    if loss is not None:
        lines += ["", f"The loss was {loss[1]:.4g} after {loss[0]:,} steps."]
    return lines or ["None were found; `unicl evaluate` makes them."]


def _evaluated(report: Mapping[str, Any]) -> list[str]:
    if not report:
        return []
    level = float(report.get("level", 0.95))
    lines = [f"On {_name(str(report.get('title', 'held-out data')))}:", ""]
    lines += [f"| metric | value | {level:.0%} interval | n |", "| --- | ---: | ---: | ---: |"]
    for result in report.get("results", {}).values():
        for key, score in result.get("scores", {}).items():
            low, high = f"{score['low']:.4g}", f"{score['high']:.4g}"
            lines.append(f"| {_cell(key)} | {score['value']:.4g} | {low} to {high} | {score['n']:,} |")
    return [*lines, ""]


def _last_loss(path: Path) -> tuple[int, float] | None:
    if not path.is_file():
        return None
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            entry = json.loads(line)
            return int(entry["step"]), float(entry["loss"])
        except (ValueError, KeyError, TypeError):  # an evaluation's line, or one that was cut off
            continue
    return None


def _run_folder(home: Path | None) -> Path | None:
    """The run that a folder is, or is a checkpoint of."""
    if home is None:
        return None
    near = (home, home.parent, home.parent.parent)
    return next((folder for folder in near if (folder / "config.yaml").is_file()), home)


def _job(run: Path | None) -> Mapping[str, Any]:
    if run is None or not (run / "config.yaml").is_file():
        return {}
    try:
        return read_yaml(run / "config.yaml")
    except UserError:
        return {}


def _sources(job: Mapping[str, Any]) -> Sequence[Source] | None:
    """The data as they are now; None if they are not at hand. A card fetches nothing."""
    specs = [str(spec) for spec in job.get("data") or ()]
    if not specs or any(_REMOTE in spec for spec in specs):
        return None
    try:
        return load_all(specs)
    except UserError:
        return None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *lines, ""]) if lines else ""


def _name(place: str) -> str:
    """The last part of a path; names of packages and of the hub stay whole."""
    plain = place.split("?")[0]
    return Path(plain).name if plain.startswith(("/", ".", "~")) or plain.count("/") > 1 else plain


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
