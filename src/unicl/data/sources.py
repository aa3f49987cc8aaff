"""Anything on disk to samples: which format a path has, and its one reader."""

import gc
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from unicl.data.elevater import labels_beside
from unicl.data.exclusive import choice_of, exclusive
from unicl.data.formats.archives import TARS, tar_samples
from unicl.data.formats.cells import BASE64_HEADS, Ledger, unpacked
from unicl.data.formats.chexpert import chexpert_samples, is_chexpert, is_chexpert_folder
from unicl.data.formats.chinese_clip import holds_pair, pair_samples
from unicl.data.formats.folders import SPLITS, class_samples, has_classes, has_images, image_samples
from unicl.data.formats.mimic_cxr import is_mimic_cxr, mimic_samples
from unicl.data.formats.numbered import is_numbered, numbered_samples
from unicl.data.formats.parquet import parquet_samples, saved_samples
from unicl.data.formats.prompted import prompt_samples
from unicl.data.formats.rows import Reading
from unicl.data.formats.tables import csv_samples, jsonl_samples
from unicl.data.formats.voc import is_voc, voc_samples
from unicl.data.spec import PROMPTS, Spec, parse
from unicl.data.tars.remote import fetch_all, local_paths
from unicl.data.tars.streamed import shelf
from unicl.errors import BadImage, UserError, suggest
from unicl.space import ImageSource, Sample, Slice, Streamed

FORMATS: Mapping[str, Callable[[Reading], Iterator[Sample]]] = MappingProxyType(
    {
        "class folder": class_samples,
        "image folder": image_samples,
        "csv": csv_samples,
        "tsv": csv_samples,
        "jsonl": jsonl_samples,
        "parquet": parquet_samples,
        "tar": tar_samples,
        "hf dataset": saved_samples,
        "chinese-clip": pair_samples,
        "numbered captions": numbered_samples,
        "chexpert": chexpert_samples,
        "mimic-cxr": mimic_samples,
        "voc": voc_samples,
        PROMPTS: prompt_samples,
    }
)

ENDINGS: Mapping[str, str] = MappingProxyType(
    {
        ".csv": "csv",
        ".tsv": "tsv",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".json": "jsonl",
        ".parquet": "parquet",
        **dict.fromkeys(TARS, "tar"),
    }
)

LARGEST_FILE = 1 << 30
"""The largest image file that is read, in bytes."""

_HEADS = tuple(head.encode() for head in BASE64_HEADS)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-]{20}")
"""How base64 begins, and the file of no image."""

WORTH_A_NOTE = 1 << 30
REACH = 5000
REACH_TARS = 4
"""Streamed samples are shuffled over so many at least, and over those of so many tars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One data set of a run.

    ``guessed`` holds the columns in use, by role; ``notes`` what a user should be told; image paths lie under
    ``root``. ``weight`` is how often it is drawn compared with the others of a run.
    ``reach`` is over how many samples streamed tars are shuffled, 0 if nothing is streamed. ``texts`` is where the
    texts stand with their ids, if they have any (`unicl.data.formats.queries`).
    """

    name: str
    path: Path
    format: str
    samples: tuple[Sample, ...]
    weight: float = 1.0
    guessed: Mapping[str, str]
    notes: tuple[str, ...] = ()
    root: Path
    reach: int = 0
    texts: Path | None = None


def load(spec: str, *, names: Mapping[str, str] | None = None) -> Source:
    """Read the data set that ``PATH`` or ``PATH?field=value&...`` describes; `unicl.data.spec` has the fields.

    ``names`` maps labels to class names and is the list of all classes; the field ``names=`` reads it from a file.
    Raises `UserError` for data that cannot be meant; an image that is missing or broken is no error here.
    """
    parsed = parse(spec)
    return _load(parsed, name=parsed.name, names=names)


def load_all(specs: Sequence[str]) -> tuple[Source, ...]:
    """Read several data sets; a name that comes again gets a number, so that every source has its own."""
    parsed = [parse(spec) for spec in specs]
    return tuple(_load(spec, name=name, names=None) for spec, name in zip(parsed, _unique(parsed), strict=True))


def load_as(spec: Spec) -> Source:
    """Read the data set of a description that is not typed, such as a typed one that was changed."""
    return _load(spec, name=spec.name, names=None)


def read_bytes(image: ImageSource) -> bytes:
    """The content of an image file, wherever it stands; base64 in a file is unpacked. Raises `BadImage`."""
    match image:
        case bytes():
            content = image
        case Streamed():
            content = shelf().read(image)
        case _:
            content = _from_disk(image)
    if content.startswith(_HEADS) or _BASE64.match(content):
        try:
            return unpacked(content)
        except ValueError as error:
            raise BadImage("broken base64") from error
    return content


def _load(spec: Spec, *, name: str, names: Mapping[str, str] | None) -> Source:
    choice = None if spec.only is None else choice_of(spec.only)
    format, spec = _resolved(spec)
    ledger = Ledger()
    names = _class_names(spec, format=format, ledger=ledger) if names is None else names
    namespace = name if spec.namespace is None else spec.namespace
    reading = Reading(spec=spec, name=name, namespace=namespace, names=names, ledger=ledger)
    with _no_collection():
        samples = tuple(_within_memory(FORMATS[format](reading), ledger=ledger, name=name))
    if choice is not None:
        found = len(samples)
        samples = exclusive(samples, choice, seed=spec.seed, where=name)
        what = "each of one finding, its label"
        ledger.note(f"only={spec.only}, seed {spec.seed}: {len(samples):,} of {found:,}, {what}")
    if not samples:
        raise UserError(f"{name} holds no rows with an image, a text or a label (is there only a header?)")
    return Source(
        name=name,
        path=spec.path,
        format=format,
        samples=samples,
        weight=spec.weight,
        guessed=MappingProxyType(dict(ledger.columns)),
        notes=ledger.notes(),
        root=spec.root or spec.folder,
        reach=_reach(spec, samples=len(samples)) if spec.stream else 0,
        texts=ledger.texts,
    )


def _class_names(spec: Spec, *, format: str, ledger: Ledger) -> Mapping[str, str] | None:
    """The names of ``names=``, or the Chinese ones beside folders that are named by numbers."""
    file = spec.names
    if file is None and format == "class folder" and (folder := spec.paths[0]).is_dir():
        file = labels_beside(folder, [entry.name for entry in folder.iterdir() if entry.is_dir()])
        if file is not None:
            ledger.note(f"folders are numbers, and {file.name} names their classes; names=FILE names them otherwise")
    if file is None:
        return None
    from unicl.data.prompts import read_names

    names = read_names(file)
    if several := sum(count > 1 for count in Counter(names.values()).values()):
        ledger.note(f"{several:,} names in {file.name} stand for several classes, which become one")
    return names


def _reach(spec: Spec, *, samples: int) -> int:
    return spec.reach or max(REACH, REACH_TARS * samples // len(spec.remote))


def _resolved(spec: Spec) -> tuple[str, Spec]:
    """The format of a source, and the source with the files that hold it when a folder or an address was given."""
    if spec.stream:
        return "tar", replace(spec, paths=local_paths(spec.remote, name=spec.name, top=shelf().folder))
    if spec.remote:
        return "tar", replace(spec, paths=fetch_all(spec.remote, name=spec.name))
    if spec.format is not None:
        return _asked(spec.format), spec
    first = spec.paths[0]
    if holds_pair(first, text_alone=spec.image == ""):
        return "chinese-clip", spec
    if is_numbered(first):
        return "numbered captions", spec
    if is_chexpert(first):
        return "chexpert", spec
    if is_mimic_cxr(first):
        return "mimic-cxr", spec
    if is_chexpert_folder(first):
        raise UserError(f"{spec.typed!r} is CheXpert's folder; give one of its tables, such as {first.name}/train.csv")
    if is_voc(first):
        return "voc", spec
    if first.is_dir():
        return _folder(first, spec=spec)
    return _by_ending(first), spec


def _asked(format: str) -> str:
    plain = format.casefold().replace("-", " ").replace("_", " ")
    known = {name.replace("-", " "): name for name in FORMATS}
    if plain not in known:
        raise UserError(f"format={format!r} is not known{suggest(plain, FORMATS)}; it is one of {', '.join(FORMATS)}")
    return known[plain]


def _by_ending(path: Path) -> str:
    ending = next((ending for ending in ENDINGS if path.name.casefold().endswith(ending)), None)
    if ending is None:
        raise UserError(
            f"{path.name!r} has no ending that says what it is; wanted is a folder or a file in {', '.join(ENDINGS)}; "
            "or say it yourself: add ?format=csv (tsv, jsonl, parquet, tar)"
        )
    return ENDINGS[ending]


def _folder(folder: Path, *, spec: Spec) -> tuple[str, Spec]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return "hf dataset", spec
    if any(path.name.endswith(TARS) for path in folder.iterdir()):
        return "tar", spec
    for table in ("metadata.csv", "metadata.jsonl", "metadata.parquet"):
        if (folder / table).is_file():
            return _by_ending(folder / table), replace(spec, paths=(folder / table,))
    if not has_images(folder, root=spec.root):
        for place in (folder, folder / "data"):
            if files := sorted(place.glob("*.parquet")):
                _one_split(files, typed=spec.typed)
                return "parquet", replace(spec, paths=tuple(files))
    return ("class folder" if has_classes(folder, root=spec.root) else "image folder"), spec


def _one_split(files: Sequence[Path], *, typed: str) -> None:
    """The hub's layout puts all parts of a data set in one folder: train-00000-of-00002.parquet, test-..."""
    splits = sorted({file.name.partition("-")[0] for file in files} & SPLITS)
    if len(splits) > 1:
        one = files[0].parent / f"{splits[0]}-*.parquet"
        raise UserError(f"the folder {typed!r} holds the parts {' and '.join(splits)}; give one of them: '{one}'")


def _unique(specs: Sequence[Spec]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for spec in specs:
        seen[spec.name] += 1
        names.append(spec.name if seen[spec.name] == 1 else f"{spec.name}#{seen[spec.name]}")
    return names


@contextmanager
def _no_collection() -> Iterator[None]:
    """Reading makes millions of objects and no cycles: looking for cycles meanwhile takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _within_memory(samples: Iterable[Sample], *, ledger: Ledger, name: str) -> Iterator[Sample]:
    """Count the images that have to be held in memory, and stop before they fill it."""
    held, limit = 0, _memory()
    for sample in samples:
        held += len(sample.image) if isinstance(sample.image, bytes) else 0
        if held > limit:
            raise UserError(
                f"{name}: its images fill the memory (more than {limit >> 30} GiB); write them as tar files or as "
                "files in a folder, which are read from the disk when they are needed"
            )
        yield sample
    if held > WORTH_A_NOTE:
        ledger.note(f"{held / 2**30:.1f} GiB of images are held in memory; in tar files they would stay on disk")


def _memory() -> int:
    try:
        return int(0.8 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 8 << 30


def _from_disk(image: Path | Slice) -> bytes:
    path = image.path if isinstance(image, Slice) else image
    try:
        found = path.stat()
        # A pipe or a device would wait or never end.
        if not stat.S_ISREG(found.st_mode):
            raise BadImage("not a file")
        size = image.size if isinstance(image, Slice) else found.st_size
        if size > LARGEST_FILE:
            raise BadImage(f"larger than {LARGEST_FILE >> 30} GiB")
        with path.open("rb") as file:
            if not isinstance(image, Slice):
                return file.read()
            file.seek(image.offset)
            content = file.read(size)
    except FileNotFoundError as error:
        raise BadImage("missing file") from error
    except (OSError, ValueError) as error:
        raise BadImage(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) < size:
        raise BadImage("cut off")
    return content
