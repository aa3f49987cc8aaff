"""Models as the folders of other projects, each written whole or not at all."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, get_args

from unicl.errors import UserError
from unicl.model import TwoTowers, View
from unicl.towers.weights import (
    cn_clip,
    open_clip_out,
    openai,
    transformers_align,
    transformers_chinese_clip,
    transformers_clip,
    transformers_dual,
    transformers_siglip,
)
from unicl.towers.weights.published import Published, Writer
from unicl.towers.weights.transformers_files import kind_of, tokenizer_notes
from unicl.use.export.card import write_card

Format = Literal["transformers", "open_clip", "openai", "cn_clip", "safetensors"]

WRITERS: Final[Mapping[str, tuple[Writer, ...]]] = MappingProxyType(
    {
        "transformers": (
            transformers_clip,
            transformers_siglip,
            transformers_chinese_clip,
            transformers_align,
            transformers_dual,
        ),
        "open_clip": (open_clip_out,),
        "openai": (openai,),
        "cn_clip": (cn_clip,),
    }
)
"""The layouts of each format, the most specific first."""

_USAGE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "transformers": """from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")""",
        "open_clip": """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")""",
        "openai": """import clip

model, preprocess = clip.load("FOLDER/FILE")""",
        "cn_clip": """from cn_clip.clip import load_from_name

# Give the names of its towers and the side of its images, which the file does not say.
model, preprocess = load_from_name(
    "FOLDER/FILE", vision_model_name=..., text_model_name=..., input_resolution=SIZE
)""",
        "safetensors": """import unicl

model = unicl.load("FOLDER")
vectors = model.embed_text(["a red fruit"])""",
    }
)
_LIBRARIES: Final[Mapping[str, str]] = MappingProxyType(
    {"transformers": "transformers", "open_clip": "open_clip", "openai": "clip", "cn_clip": "cn_clip"}
)


_UNMENDED: Final = ("none", "bert", "bare")
"""Cleanings that leave a text's encoding and entities alone."""


def write(
    views: Mapping[View, Published],
    out: Path,
    *,
    to: Format,
    rebuild: Callable[[Published], TwoTowers],
    home: Path | None = None,
) -> tuple[Path, ...]:
    """Write published views into the new folder ``out`` with their model cards; two views are two folders in it.

    ``rebuild`` makes a model of ours again (`unicl.published.model_of`), for "safetensors", which `unicl.load` reads.
    ``home`` is the run or model folder that the cards tell of. Raises `UserError` before anything is written if the
    format cannot express a view, or ``out`` holds something.
    """
    if to not in get_args(Format):
        raise UserError(f"no format {to!r}; choose one of {', '.join(get_args(Format))}")
    writers = {view: _writer(model, view, to=to) for view, model in views.items()}
    _refuse_full(out)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for view, model in views.items():
            folder = part / view if len(views) > 1 else part
            folder.mkdir(exist_ok=True)
            notes = _one(model, folder, writer=writers[view], rebuild=rebuild)
            _card(model, folder, to=to, form=_form(writers[view]), view=view, notes=notes, home=home)
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {str(out)!r}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return tuple(sorted(path for path in out.rglob("*") if path.is_file()))


def refusal(model: Published, *, to: Format) -> str | None:
    """Why a format cannot express a model, by each of its layouts; None if one of them can."""
    if to == "safetensors":
        return None
    if any(tower is not None and tower.parts is not None for tower in (model.image, model.text)):
        return (
            "it has no place for parts of pictures and texts, which this model compares; write safetensors, which "
            "keeps all of it"
        )
    if model.text is not None and (model.text.states or model.text.pool == "padded"):
        return (
            "it has no place for texts that are read from several layers or over their padding, as this model's are; "
            "write safetensors, which keeps all of it"
        )
    reasons = {writer.NAME: writer.refusal(model) for writer in WRITERS[to]}
    if any(reason is None for reason in reasons.values()):
        return None
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _writer(model: Published, view: View, *, to: Format) -> Writer | None:
    """None for a folder of ours."""
    if reason := refusal(model, to=to):
        raise UserError(f"the view for {view} cannot be written as {to}, and nothing is: {reason}")
    return next((writer for writer in WRITERS.get(to, ()) if writer.refusal(model) is None), None)


def _refuse_full(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{str(out)!r} already holds something; choose a new folder with --out")


def _one(
    model: Published, folder: Path, *, writer: Writer | None, rebuild: Callable[[Published], TwoTowers]
) -> tuple[str, ...]:
    """Write one view, and return what its files could not say."""
    if writer is None:
        rebuild(model).save(folder)
        return ()
    writer.write(model, folder)
    if model.tokenizer is None:
        return ()
    outside = writer in WRITERS["transformers"]
    mends = writer in (*WRITERS["open_clip"], *WRITERS["openai"]) and model.tokenizer.cleaning in _UNMENDED
    padding = ("texts are padded to the context: give the processor padding='max_length'",)
    mended = ("texts with HTML entities or broken encodings are mended there first, and so get other tokens than here",)
    return (
        *(mended if mends else ()),
        *(tokenizer_notes(model.tokenizer, kind=kind_of(model.tokenizer)) if outside else ()),
        *(padding if outside and model.tokenizer.fixed else ()),
    )


def _form(writer: Writer | None) -> str:
    return "unicl model folder" if writer is None else writer.NAME


def _card(
    model: Published,
    folder: Path,
    *,
    to: Format,
    form: str,
    view: View,
    notes: tuple[str, ...],
    home: Path | None,
) -> None:
    weights = next((path.name for path in sorted(folder.iterdir()) if path.suffix == ".pt"), "")
    usage = _USAGE[to].replace("FILE", weights)
    if model.image is not None:
        usage = usage.replace("SIZE", str(model.image.size))
    library = _LIBRARIES.get(to, "unicl")
    write_card(folder, model=model, home=home, library=library, form=form, usage=usage, view=view, notes=notes)
