"""An export as a model again: its graphs, run by their own program, in the place of the towers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, cast

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from unicl.data.text import Tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers
from unicl.objective.terms import ContrastSettings
from unicl.space import Embedding
from unicl.towers.image import ImageTower
from unicl.towers.text import TextTower
from unicl.use.export.settings import JOINT, NEEDS, ExportBlock, Precision, require

CONFIG, OBJECTIVE, TOKENIZER = "config.json", "objective.safetensors", "tokenizer"
IMAGES: Final = 16
TEXTS: Final = 8
"""Rows of one call: more are no faster on a processor, and few texts are of like length."""
LEAST: Final = 2
"""Tokens of a text at least: graphs are traced for rows of several."""


class Engine(Protocol):
    """A program that runs a graph: tensors by name in, tensors by name out."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All outputs of the graph."""


class RuntimeImage(nn.Module):
    """An exported image tower in the place of an `ImageTower`, without parts."""

    parts: None = None
    digest: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, engine: Engine, block: ExportBlock, *, settings: ModelSettings) -> None:
        super().__init__()
        self.engine: Final = engine
        self.width: Final = settings.width
        self.feature_width: Final = block.features["image"]
        self.pixels: Final = torch.uint8 if block.pixels == "uint8" else torch.float32
        # Among the weights, it makes the fingerprint of a model that of these files.
        self.register_buffer("digest", _digest(block, "image"))
        self.register_buffer("mean", torch.tensor(block.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(block.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Embedding:
        """``(N, 3, S, S)`` pixels, 0 to 255, to an `Embedding`; raises `UserError` for anything else."""
        if images.ndim != 4:
            raise UserError(f"an export reads images of shape (N, 3, S, S), not {tuple(images.shape)}; load the model")
        pixels = images.cpu()
        if self.pixels == torch.uint8 and pixels.is_floating_point():
            pixels = pixels.round().clamp(0, 255)
        pixels = pixels.to(self.pixels)
        if len(pixels) == 0:
            return _nothing(self.width, self.feature_width)
        return _embedding([self.engine({"pixels": part.contiguous()}) for part in _parts(pixels, IMAGES)], side="image")


class RuntimeText(nn.Module):
    """An exported text tower in the place of a `TextTower`, without parts."""

    parts: None = None
    digest: Tensor

    def __init__(self, engine: Engine, block: ExportBlock, *, settings: ModelSettings) -> None:
        super().__init__()
        assert settings.text is not None
        self.engine: Final = engine
        self.width: Final = settings.width
        self.feature_width: Final = block.features["text"]
        self.pool: Final = settings.text.pool
        self.context: Final = settings.text.context
        self.fixed: Final = settings.text.fixed
        self.register_buffer("digest", _digest(block, "text"))

    def forward(self, tokens: Tensor, mask: Tensor) -> Embedding:
        """``tokens (N, L)`` and their mask to an `Embedding`; raises `UserError` for texts that are too long."""
        tokens, mask = tokens.cpu(), mask.cpu()
        if len(tokens) == 0:
            return _nothing(self.width, self.feature_width)
        if tokens.shape[1] > self.context:
            raise UserError(f"texts of {tokens.shape[1]} tokens came, but this export reads at most {self.context}")
        lengths = mask.sum(1)
        order = lengths.argsort(stable=True)
        parts = []
        for rows in _parts(order, TEXTS):
            longest = tokens.shape[1] if self.fixed else max(int(lengths[rows[-1]]), LEAST)
            part = {"tokens": tokens[rows, :longest], "mask": mask[rows, :longest]}
            lacking = longest - part["tokens"].shape[1]
            parts.append(self.engine({k: F.pad(v, (0, max(lacking, 0))).contiguous() for k, v in part.items()}))
        return _embedding(parts, side="text").select(order.argsort())

    def save_config(self, folder: Path) -> None:
        """An export has no configuration of transformers to write: raises `UserError`."""
        raise UserError(f"an export cannot be saved as a model in {str(folder)!r}; copy its folder")


def is_export(place: Path) -> bool:
    """Whether a folder is one that `unicl.use.export.run.export` wrote."""
    try:
        return "export" in json.loads((place / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def load_export(place: Path) -> TwoTowers:
    """The model of an export, with `embed_image`, `embed_text` and all that builds on them.

    Raises `UserError` if the folder is none, is damaged, or the package that runs it is missing.
    """
    settings, block = read_config(place)
    require(*(name for name in NEEDS[block.kind] if name != "onnxscript"), doing=f"this {block.kind} export")
    missing = [name for names in block.files.values() for name in names if not (place / name).is_file()]
    if missing:
        raise UserError(f"the export {str(place)!r} lacks {', '.join(missing)}; export the model again")
    tokenizer: Tokenizer | None = None
    text: RuntimeText | None = None
    if settings.text is not None:
        tokenizer = Tokenizer.load(place / TOKENIZER)
        text = RuntimeText(open_engine(place, block, "text"), block, settings=settings)
    image = RuntimeImage(open_engine(place, block, "image"), block, settings=settings)
    model = TwoTowers(settings, tokenizer=tokenizer, image=cast(ImageTower, image), text=cast(TextTower, text))
    model.objective.load_state_dict(load_file(place / OBJECTIVE))
    return model.eval()


def read_config(place: Path) -> tuple[ModelSettings, ExportBlock]:
    """What config.json says of the model and of its export; raises `UserError` if it is none."""
    path = place / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        block = TypeAdapter(ExportBlock).validate_python(content.pop("export"))
        content.pop("views", None)
        return TypeAdapter(ModelSettings).validate_python(content), block
    except (OSError, ValidationError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not the configuration of an export: {error}") from error


def open_engine(place: Path, block: ExportBlock, graph: str) -> Engine:
    """The program that runs one graph of an export, on as many threads as torch has.

    Raises `UserError` if it cannot read the file.
    """
    path = place / block.files[graph][0]
    try:
        match block.kind:
            case "onnx":
                return _onnx(path)
            case "openvino":
                return _openvino(path, dtype=block.dtype)
            case "torch":
                return _torch(path)
    except Exception as error:  # each program has its own kinds
        raise UserError(f"{path} cannot be run by {block.kind}: {error}") from error


def _onnx(path: Path) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that wait in a loop take the processor from those that decode pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, found, strict=True)}

    return run


def _openvino(path: Path, *, dtype: Precision) -> Engine:
    import openvino

    threads: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    if dtype != "fp16":
        # Left alone, it computes in bfloat16 where the processor can, and is no longer within 1e-4.
        threads["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(str(path), "CPU", threads)
    # What gives two outputs the same numbers has the names of both.
    names = {name: place for place, output in enumerate(compiled.outputs) for name in output.names}

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = compiled({name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(found[place].copy()) for name, place in names.items()}

    return run


def _torch(path: Path) -> Engine:
    module = torch.export.load(str(path)).module()
    side = path.stem

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            found = module(*inputs.values())
        # A program has no names for its outputs.
        if side == "joint":
            return dict(zip(JOINT, found, strict=True))
        return {f"{side}_embedding": found[0], f"{side}_features": found[-1]}

    return run


def _embedding(parts: list[dict[str, Tensor]], *, side: str) -> Embedding:
    """The rows of several calls; at unit length even if the graph gives them as they are."""
    whole, features = (torch.cat([part[f"{side}_{end}"] for part in parts]) for end in ("embedding", "features"))
    return Embedding(whole=F.normalize(whole.float(), dim=-1), features=features)


def _nothing(width: int, features: int) -> Embedding:
    return Embedding(whole=torch.zeros(0, width), features=torch.zeros(0, features))


def _parts(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _digest(block: ExportBlock, graph: str) -> Tensor:
    content = f"{block.kind} {block.dtype} {block.hashes[graph]}"
    return torch.tensor(list(hashlib.sha256(content.encode()).digest()), dtype=torch.uint8)


def narrowed(settings: ModelSettings, *, dims: int | None) -> ModelSettings:
    """The settings of a model whose vectors are one view of the whole: ``dims`` wide, with no view of their own."""
    if dims is None:
        return settings
    terms = tuple(replace(term, dims=None) if isinstance(term, ContrastSettings) else term for term in settings.terms)
    return replace(settings, width=dims, terms=terms)
