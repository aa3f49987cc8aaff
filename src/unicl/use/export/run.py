"""A model to a folder of graphs that run without this library, checked against the model before it is kept."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file

from unicl.data.sources import Source
from unicl.errors import UserError
from unicl.evaluate.bar import bar
from unicl.model import ModelSettings, TwoTowers, View
from unicl.use.export.graphs import Graph, dims_of, image_graph, joint_graph, scoring, text_graph
from unicl.use.export.onnx import join, write_onnx
from unicl.use.export.openvino import write_openvino
from unicl.use.export.parity import BOUNDS, Bounds, Report, Retrieval, Row, compare, compare_joint
from unicl.use.export.program import write_program
from unicl.use.export.quantise import Feed, quantise_dynamic, quantise_static
from unicl.use.export.runtime import (
    CONFIG,
    OBJECTIVE,
    TOKENIZER,
    load_export,
    narrowed,
    open_engine,
    read_config,
)
from unicl.use.export.sample import Sample, draw
from unicl.use.export.settings import NEEDS, ExportBlock, ExportSettings, Target
from unicl.use.export.wholes import LEFT_OUT, check_wholes, has_parts, of_wholes

Say = Callable[[str], None]
BATCH: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """All that the steps of an export share; ``folder`` is where the files go until they have passed."""

    model: TwoTowers
    to: Target
    settings: ExportSettings
    sample: Sample
    folder: Path
    say: Say

    @property
    def view(self) -> View:
        """The view whose vectors are compared and scored."""
        return "classes" if self.settings.view == "classes" and self.model.text is not None else "instances"

    @property
    def notes(self) -> dict[str, str]:
        """What stands in the files themselves."""
        settings = self.model.settings
        return {
            "unicl": version("unicl"),
            "recipe": settings.recipe,
            "view": self.settings.view,
            "normalised": str(self.settings.normalise),
            "scale": str(scoring(self.model, view=self.view)[0]),
            "size": str(settings.image.size),
        }


def export(
    model: TwoTowers,
    out: Path,
    *,
    to: Target = "onnx",
    settings: ExportSettings = ExportSettings(),
    sources: Sequence[Source] | None = None,
    bounds: Bounds | None = None,
    progress: bool = False,
    say: Say | None = None,
) -> Report:
    """Write the graphs of a model into the folder ``out``, which must be new or empty, and say how near they are.

    They are compared on pictures and captions of ``sources``, or on made-up ones, and int8 is calibrated with others
    of these. ``say`` is told what is done. ``bounds`` take the place of those of the precision. Raises `UserError` if a
    package is missing, a tower cannot be exported, or the export is out of bounds; then nothing is left at ``out``.
    """
    start = time.perf_counter()
    settings.check(to)
    if settings.joint and model.text is None:
        raise UserError(f"a joint graph needs a text tower, and recipe {model.settings.recipe!r} has none")
    check_wholes(model.settings, joint=settings.joint)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{str(out)!r} exists and is not an empty folder; choose another --out")
    sample = draw(model, sources, count=settings.pictures)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        work = _Work(model=model.eval(), to=to, settings=settings, sample=sample, folder=part, say=say or _silent)
        report = replace(_exported(work, bounds=bounds, progress=progress), seconds=time.perf_counter() - start)
        _require_near(report)
        report.save(part)
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise UserError(f"cannot write the export to {str(out)!r}: {error.strerror or error}", code=1) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for note in report.notes:
        work.say(f"note: {note}")
    work.say(f"the export is in {out} ({sum(report.sizes.values()) / 1e6:,.0f} MB, {report.seconds:.0f} s)")
    return report


def _silent(line: str) -> None:
    """Say nothing."""


def _exported(work: _Work, *, bounds: Bounds | None, progress: bool) -> Report:
    """All steps, with a bar over them: trace and compare, then 8 bits and compare again."""
    settings, whole = work.settings, work.settings.dtype != "int8"
    parameters = sum(p.numel() for p in work.model.parameters()) / 1e6
    work.say(
        f"exporting {parameters:.1f} M parameters to {work.to} ({settings.dtype}, view {settings.view}), about "
        f"{_estimate(parameters, whole=whole):.0f} s; compared on {work.sample.origin}"
    )
    with bar("exporting", total=2 if whole else 4, shown=progress) as step:
        base = work if whole else _before(work)
        sizes = _traced(base)
        step(1)
        rows, found = _compared(base, final=whole)
        step(1)
        if not whole:
            sizes = _in_8_bits(work, base.folder)
            step(1)
            after, found = _compared(work, final=True)
            rows = (*rows, *after)
            step(1)
            shutil.rmtree(base.folder)
    return Report(
        kind=work.to,
        dtype=settings.dtype,
        view=settings.view,
        rows=rows,
        retrieval=found,
        bounds=bounds or BOUNDS[settings.dtype],
        sizes=sizes,
        sample=work.sample.origin,
        notes=_remarks(work, rows),
    )


def _require_near(report: Report) -> None:
    if report.failures:
        raise UserError(
            f"{report.page()}\nthe export is out of bounds, and nothing was written: {'; '.join(report.failures)}; "
            f"{_advice(report)}",
            code=1,
        )


def _advice(report: Report) -> str:
    if any(not row.final and not row.difference <= BOUNDS["fp32"].difference for row in report.rows):
        return "the fault is in the graph, not in the 8 bits: please report it"
    match report.dtype:
        case "int8":
            return "calibrate on pictures like those of its use (--data), or export fp16 or fp32"
        case "fp16":
            return "export fp32, for weights that half precision does not hold"
        case "fp32":
            return "the graph is wrong: please report it"


def _before(work: _Work) -> _Work:
    """The work of the float32 graphs that are made into 8 bits: those are ONNX, whatever they become."""
    settings = replace(work.settings, dtype="fp32", joint=False)
    return replace(work, to="onnx", folder=work.folder / "fp32", settings=settings)


def _traced(work: _Work) -> dict[str, int]:
    """Every graph of the model, in a folder that can be loaded."""
    work.folder.mkdir(exist_ok=True)
    graphs = {"image": image_graph(work.model, work.settings)}
    if work.model.text is not None:
        graphs["text"] = text_graph(work.model, work.settings)
    files = {name: _written(work, name, graph) for name, graph in graphs.items()}
    if work.settings.joint and work.to == "torch":
        joint = joint_graph(work.model, graphs["image"], graphs["text"], view=work.view)
        files["joint"] = _written(work, "joint", joint)
    return _finished(work, files)


def _written(work: _Work, name: str, graph: Graph) -> tuple[str, ...]:
    start = time.perf_counter()
    if work.to == "torch":
        files = write_program(graph, work.folder / f"{name}.pt2")
    else:
        files = write_onnx(graph, work.folder / f"{name}.onnx", opset=work.settings.opset, notes=work.notes)
    numbers = sum(p.numel() for p in graph.module.parameters()) / 1e6
    work.say(f"{name}: {numbers:.1f} M parameters traced in {time.perf_counter() - start:.0f} s")
    return files


def _in_8_bits(work: _Work, base: Path) -> dict[str, int]:
    """The float32 graphs of ``base`` with int8 weights."""
    files = {}
    for name in ("image", "text") if work.model.text is not None else ("image",):
        start = time.perf_counter()
        source, out, keep = base / f"{name}.onnx", work.folder / f"{name}.onnx", f"{name}_features"
        outside = source.with_name(f"{source.name}.data").is_file()
        if name == "text" and work.to == "onnx":
            quantise_dynamic(source, out, keep=keep, outside=outside)
        else:
            # OpenVINO is slow with ranges that are taken anew at each call.
            convolutions = name == "image" and work.model.image.convolutional
            quantise_static(
                source, out, feeds=_feeds(work, name), keep=keep, convolutions=convolutions, outside=outside
            )
        files[name] = (out.name, *((f"{out.name}.data",) if outside else ()))
        work.say(f"{name}: int8 in {time.perf_counter() - start:.0f} s")
    return _finished(work, files)


def _feeds(work: _Work, name: str) -> list[Feed]:
    """What a graph reads, in batches as at its use."""
    if name == "image":
        pixels = work.sample.more_pixels.to(getattr(torch, work.settings.pixels)).numpy()
        return [{"pixels": pixels[start : start + BATCH]} for start in range(0, len(pixels), BATCH)]
    assert work.model.tokenizer is not None
    texts = sorted(work.sample.more_texts, key=len)
    batches = [work.model.tokenizer(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    return [{"tokens": tokens.numpy(), "mask": mask.numpy()} for tokens, mask in batches]


def _finished(work: _Work, files: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """The joint graph, the form of the target, and all that loads them; gives the sizes of the files."""
    files = dict(files)
    if work.settings.joint and work.to != "torch":
        scale, bias = scoring(work.model, view=work.view)
        towers = (work.folder / "image.onnx", work.folder / "text.onnx")
        files["joint"] = join(*towers, work.folder / "joint.onnx", scale=scale, bias=bias, notes=work.notes)
    if work.to == "openvino":
        files = {name: _converted(work, name, sources) for name, sources in files.items()}
    block = _block(work, files)
    settings, tokenizer = _settings(work), work.model.tokenizer
    names = {term.name for term in settings.terms}
    terms = {k: v for k, v in work.model.objective.state_dict().items() if k.split(".")[1] in names}
    content = TypeAdapter(ModelSettings).dump_python(settings, mode="json")
    content["views"] = settings.views
    content["export"] = TypeAdapter(ExportBlock).dump_python(block, mode="json")
    (work.folder / CONFIG).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file({k: v.detach().cpu().contiguous() for k, v in terms.items()}, work.folder / OBJECTIVE)
    if tokenizer is not None:
        tokenizer.save(work.folder / TOKENIZER)
    return {path.name: path.stat().st_size for names in files.values() for path in map(work.folder.joinpath, names)}


def _converted(work: _Work, name: str, sources: Sequence[str]) -> tuple[str, ...]:
    path = work.folder / f"{name}.onnx"
    files = write_openvino(path, path.with_suffix(".xml"), half=work.settings.dtype == "fp16")
    for source in sources:
        (work.folder / source).unlink()
    return files


def _block(work: _Work, files: Mapping[str, tuple[str, ...]]) -> ExportBlock:
    image, text, settings = work.model.image, work.model.text, work.settings
    features = {"image": image.feature_width} | ({} if text is None else {"text": text.feature_width})
    return ExportBlock(
        kind=work.to,
        dtype=settings.dtype,
        view=settings.view,
        normalised=settings.normalise,
        pixels=settings.pixels,
        opset=None if work.to == "torch" else settings.opset,
        files=files,
        sizes={name: sum((work.folder / part).stat().st_size for part in parts) for name, parts in files.items()},
        hashes={name: _hash([work.folder / part for part in parts]) for name, parts in files.items()},
        features=features,
        mean=tuple(image.mean.flatten().tolist()),
        std=tuple(image.std.flatten().tolist()),
        scale={view: work.model.scale(view) for view in ("instances", "classes")},
        made_with=_versions("unicl", "torch", *NEEDS[work.to]),
    )


def _settings(work: _Work) -> ModelSettings:
    """The model's settings as the graphs give its vectors, with the pool that a default stood for."""
    settings, text = work.model.settings, work.model.text
    if text is not None and settings.text is not None:
        context = settings.text.context if work.model.tokenizer is None else work.model.tokenizer.context
        settings = replace(settings, text=replace(settings.text, pool=text.pool, context=context))
    return narrowed(of_wholes(settings), dims=dims_of(work.model, work.settings)["embedding"])


def _compared(work: _Work, *, final: bool) -> tuple[tuple[Row, ...], Retrieval | None]:
    exported, dtype = load_export(work.folder), work.settings.dtype
    rows, found = compare(work.model, exported, work.sample, view=work.view, dtype=dtype, final=final)
    if work.settings.joint:
        engine = open_engine(work.folder, read_config(work.folder)[1], "joint")
        numbers = scoring(work.model, view=work.view)
        joint = compare_joint(work.model, engine, work.sample, view=work.view, dtype=dtype, scoring=numbers)
        rows = (*rows, joint)
    for row in rows:
        work.say(
            f"{row.graph}, {row.dtype}: cosine at least {row.cosine:.6f}, difference at most {row.difference:.1e}, "
            f"{row.per_second:,.1f} a second (the model: {row.before:,.1f})"
        )
    return rows, found


def _remarks(work: _Work, rows: Sequence[Row]) -> tuple[str, ...]:
    """What a reader of the report should know."""
    notes = [LEFT_OUT] if has_parts(work.model.settings) else []
    if not work.sample.real:
        notes.append("compared on made-up pictures and texts: give the export your own, which its use is like (--data)")
    if work.settings.dtype == "int8":
        if not work.sample.real:
            notes.append("int8 was calibrated on made-up pictures; on real ones its ranges fit better")
        if not torch.cpu._is_vnni_supported():
            notes.append("this processor has no 8-bit dot product (VNNI): int8 is smaller here, but not faster")
        slow = [row.graph for row in rows if row.final and row.per_second < row.before]
        notes += [f"the int8 graph of the {name} tower is slower here than the model" for name in slow]
    return tuple(notes)


def _estimate(parameters: float, *, whole: bool) -> float:
    """Seconds for millions of parameters, on two cores: tracing, and for 8 bits as much again."""
    return (5 + 0.15 * parameters) * (1 if whole else 2)


def _hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
