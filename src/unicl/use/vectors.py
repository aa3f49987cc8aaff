"""A folder of vectors: one row for each picture, its parts if they are kept, and which model made them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from unicl.errors import UserError
from unicl.model import TwoTowers, View
from unicl.objective.terms import ContrastSettings
from unicl.space import ImageSource, Slice
from unicl.towers.kept import digest
from unicl.towers.text import OWN_NAMES

Precision = Literal["float32", "float16"]
VECTORS, PARTS = "embeddings.npy", "parts.npy"
ITEMS, SKIPPED, MANIFEST = "items.jsonl", "skipped.jsonl", "manifest.json"
FORMAT: Final = 2
"""The version of the folder's layout; 1 had no parts."""
_WHERE: Final = {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"}
"""What a configuration says about where it came from, and not about what it computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A picture that has been looked at; ``image`` is None if it stands in no file of its own (base64 of a table).

    ``stamp`` changes when the picture does; ``reason`` says why it could not be read, "" if it could.
    """

    id: str
    image: ImageSource | None = None
    stamp: str = ""
    reason: str = ""

    def line(self) -> str:
        """The item as one line of JSON."""
        content: dict[str, object] = {"id": self.id, "stamp": self.stamp}
        if isinstance(self.image, Path):
            content["path"] = str(self.image).encode("utf-8", "replace").decode()
        if isinstance(self.image, Slice):
            content |= {"path": str(self.image.path), "offset": self.image.offset, "size": self.image.size}
        if self.reason:
            content["reason"] = self.reason
        return json.dumps(content, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptParts:
    """The parts that a folder keeps of each picture: ``count`` vectors of ``width`` numbers, in float16."""

    count: int
    width: int

    def size(self, pictures: int) -> int:
        """The bytes that the parts of so many pictures take."""
        return 2 * pictures * self.count * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What made a folder of vectors: the fingerprint of the model, the view, and the sizes.

    ``parts`` is None if none are kept, though the model may compare them.
    """

    model: str
    recipe: str
    view: View
    width: int
    dtype: Precision
    count: int
    skipped: int
    paths: tuple[str, ...]
    parts: KeptParts | None = None
    format: int = FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """A folder of vectors, open: ``values (N, D)`` stay on disk and are read where they are used.

    So do ``parts (N, P, D)``, which are None if the folder keeps none.
    """

    folder: Path
    manifest: Manifest
    values: np.ndarray[Any, Any]
    parts: np.ndarray[Any, Any] | None = None

    def items(self) -> Iterator[Item]:
        """What the rows are, in their order."""
        return read_items(self.folder / ITEMS)

    def skipped(self) -> Iterator[Item]:
        """The pictures that could not be read, with the reason."""
        return read_items(self.folder / SKIPPED)

    def take(self, rows: Sequence[int]) -> list[Item]:
        """What the given rows are; the list is read once and not kept."""
        wanted = set(rows)
        found = {number: item for number, item in enumerate(self.items()) if number in wanted}
        return [found[row] for row in rows]


def fingerprint(model: TwoTowers) -> str:
    """A hash of what makes a model's vectors, settings and weights: equal for equal models, wherever they lie."""
    image, text = model.settings.image, model.settings.text
    settings: list[object] = [image.name, image.size, image.pool, image.head, sorted(model.settings.views.items())]
    settings += [sorted(image.options.items()), image.eps, image.frame]
    if text is not None and model.text is not None:
        settings += [_named(model), text.heads, text.head, model.text.pool, text.eps, sorted(text.options.items())]
    settings += _finer(model)
    return digest(settings, model.state_dict())


def is_vectors(folder: Path) -> bool:
    """Whether a folder is the output of `unicl.use.embed`, whole."""
    return (folder / MANIFEST).is_file() and (folder / VECTORS).is_file() and (folder / ITEMS).is_file()


def open_vectors(folder: Path) -> Vectors:
    """Open a folder that `unicl.use.embed` wrote; raises `UserError` if it is none or is damaged."""
    if not is_vectors(folder):
        raise UserError(f"{str(folder)!r} holds no vectors; write them with: unicl embed MODEL PHOTOS --out {folder}")
    made = read_manifest(folder)
    values = _array(folder / VECTORS, shape=(made.count, made.width), dtype=made.dtype)
    parts = None
    if made.parts is not None:
        parts = _array(folder / PARTS, shape=(made.count, made.parts.count, made.parts.width), dtype="float16")
    return Vectors(folder=folder, manifest=made, values=values, parts=parts)


def read_manifest(folder: Path) -> Manifest:
    """What made the vectors of a folder; raises `UserError` if its manifest is damaged or of a later version."""
    try:
        made = TypeAdapter(Manifest).validate_json((folder / MANIFEST).read_bytes())
    except (ValidationError, ValueError, OSError) as error:
        raise UserError(f"the vectors in {str(folder)!r} cannot be read: {error}; embed the pictures again") from error
    if made.format > FORMAT:
        raise UserError(
            f"the vectors in {str(folder)!r} are of format {made.format}, and this version of unicl reads {FORMAT} at "
            "most; update it, or embed the pictures again into another folder"
        )
    return made


def require_same_model(vectors: Vectors, *, model: str) -> None:
    """Raise `UserError` if the vectors were made by another model than the one with this fingerprint."""
    made = vectors.manifest
    if made.model != model:
        raise UserError(
            f"the vectors in {str(vectors.folder)!r} were made by another model ({made.recipe}, {made.model[:12]}), "
            f"not by this one ({model[:12]}), and cannot be compared; embed the pictures again, or use their own model"
        )


def read_items(path: Path) -> Iterator[Item]:
    """The items of a JSONL file, one at a time; raises `UserError` for a line that is none."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield _item(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number} is damaged; embed the pictures again") from error


def _array(path: Path, *, shape: tuple[int, ...], dtype: Precision) -> np.ndarray[Any, Any]:
    """An array that stays on disk."""
    folder = str(path.parent)
    try:
        values: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"the vectors in {folder!r} cannot be read ({path.name}: {error}); remove the folder and embed the "
            "pictures again"
        ) from error
    if values.shape != shape or values.dtype != dtype:
        raise UserError(
            f"{path.name} in {folder!r} has shape {values.shape} in {values.dtype}, but its manifest says {shape} in "
            f"{dtype}; remove the folder and embed the pictures again"
        )
    return values


def _finer(model: TwoTowers) -> list[object]:
    """What else makes the vectors, parts and scores of a model that compares parts; nothing for any other."""
    image, text = model.settings.image, model.settings.text
    contrasts = [term for term in model.settings.terms if isinstance(term, ContrastSettings)]
    asked = (image.enlarged, image.parts, None if text is None else text.parts)
    # Models of whole vectors keep the fingerprint that their folders already carry.
    if not any(asked) and all(term.similarity == "cosine" for term in contrasts):
        return []
    reading = () if text is None else (text.fixed, text.context)
    terms = [
        (t.texts, t.dims, t.weight, t.similarity, sorted(t.options.items()), sorted(t.use_options.items()))
        for t in contrasts
    ]
    return [*asked, *reading, *terms]


def _named(model: TwoTowers) -> object:
    """What a text tower is: a name of ours or, as folders and packages move, what its own configuration says."""
    assert model.settings.text is not None
    assert model.text is not None
    if model.settings.text.name in OWN_NAMES:
        return model.settings.text.name
    config = model.text.backbone.config.to_dict()
    return sorted((name, repr(value)) for name, value in config.items() if name not in _WHERE)


def _item(content: dict[str, Any]) -> Item:
    path = Path(content["path"]) if "path" in content else None
    image = path if path is None or "offset" not in content else Slice(path, content["offset"], content["size"])
    return Item(id=content["id"], image=image, stamp=content.get("stamp", ""), reason=content.get("reason", ""))
