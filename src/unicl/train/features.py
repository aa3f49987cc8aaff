"""A locked image tower's rows, kept on disk: each picture is seen once, by whichever run comes first.

LiT, section 4.5 and appendix F: where pictures are not varied and the tower does not learn, what it says of them can be
computed beforehand, and only the text tower is left to train. Heads come after what is kept, and learn.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, fields
from os import cpu_count
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unicl.data.image import decode, fit
from unicl.data.keys import image_key
from unicl.data.locks import alone
from unicl.data.stream import StreamSettings
from unicl.errors import BadImage, UserError
from unicl.model import TwoTowers, quiet
from unicl.space import NO_KEY, ImageSource, Sample
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.kept import digest
from unicl.train.ranks import Ranks
from unicl.train.record import replace_text, sync
from unicl.train.step import Precision
from unicl.train.watch import together

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
MOST_ROWS: Final = 4096
MOST_BYTES: Final = 1 << 26
MOST_SECONDS: Final = 60.0
"""A shard is closed when it has so many rows, bytes, or seconds of work, which is what a killed run loses at most."""

Tell = Callable[[str], None]
Seen = tuple[Sequence[Sample], list[Tensor | str]]
"""Some samples, and of each its pixels or features, or why there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What made the rows of a folder: the tower, how pictures came to it, and how wide a row is."""

    tower: str
    transform: str
    precision: Precision
    width: int
    format: int = FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Rows of a locked tower for N samples, by their numbers; they stay on disk until they are asked for.

    ``places (N, 2)`` are the shard and the row of each sample, -1 where there is no image or none that can be read.
    """

    samples: Sequence[Sample]
    shards: tuple[Tensor, ...]
    places: NDArray[np.int64]

    def __getitem__(self, number: int, /) -> Tensor | None:
        """``(W,)`` of a sample as `unicl.towers.parts.Look.packed` has it, or None."""
        shard, row = self.places[number].tolist()
        return None if shard < 0 else self.shards[shard][row]

    def seen(self, *, settings: ImageSettings, batch: int) -> Iterator[Seen]:
        """All samples in batches, as `decoded` gives them, with features in place of pixels."""
        for start in range(0, len(self.samples), batch):
            part = self.samples[start : start + batch]
            rows = [self[start + k] for k in range(len(part))]
            yield part, [_why(s, settings) if row is None else row for s, row in zip(part, rows, strict=True)]


def kept_features(
    model: TwoTowers,
    samples: Sequence[Sample],
    folder: Path,
    *,
    precision: Precision = "fp32",
    ranks: Ranks = Ranks(),
    batch: int = 64,
    quiet: bool = False,
) -> Features:
    """What the image tower says of these samples; only pictures that the folder does not have are looked at.

    Processes share the work. Another run that fills the folder is waited for. Raises `UserError` if the folder holds
    rows of another tower or transform, is damaged, or has no room.
    """
    tell = Console(stderr=True, quiet=quiet or not ranks.first, highlight=False, markup=False, soft_wrap=True).print
    home = folder / f"{model.settings.image.size}px-{precision}"
    with ExitStack() as held:
        with together(ranks=ranks, doing="opening kept features"):
            manifest, dtype = _manifest(model, precision)
            if ranks.first:
                _claim(home, manifest, held=held, tell=tell)
        # All know what is missing before one of them adds to it.
        with together(ranks=ranks, doing="reading kept features"):
            keys = _keys(samples)
            new = _missing(keys, _shards(home, manifest))
        with together(ranks=ranks, doing="making features"):
            _check_room(home, len(new) * manifest.width * dtype.itemsize, pictures=len(new), tell=tell)
            own = new[len(new) * ranks.rank // ranks.size : len(new) * (ranks.rank + 1) // ranks.size]
            work = _Work(model=model, home=home, precision=precision, batch=batch, shown=ranks.first and not quiet)
            work.do([samples[k] for k in own], keys=keys[own])
    with together(ranks=ranks, doing="reading kept features"):
        shards = _shards(home, manifest)
        return Features(samples=samples, shards=tuple(rows for _, rows in shards), places=_find(keys, shards))


def cache_folder(
    image: ImageSettings,
    data: StreamSettings,
    *,
    asked: str,
    still: bool,
    out: Path,
    samples: Sequence[Sample],
    steps: int,
) -> Path | None:
    """Where a run keeps the features of its image tower; None if it looks at pictures anew each time.

    ``asked`` is a folder, "off", or "auto": in the run's own folder ``out`` where it can be and pays, that is if a run
    of so many steps sees each picture at least once, and parts do not take many times the room of whole features.
    ``still`` says that the tower is as it was when the run began and stays so; its head may learn.
    Raises `UserError` for a folder where pictures are varied or the tower learns.
    """
    why = _why_not(data, still=still, studies=any(sample.others for sample in samples))
    if asked in ("auto", "off"):
        few = steps * data.batch < len({sample.image for sample in samples})
        return None if why or asked == "off" or image.parts is not None or few else out / "features"
    if why:
        raise UserError(f"features cannot be kept in {asked!r}: {why}; or leave --cache out")
    return Path(asked)


def decoded(samples: Sequence[Sample], *, settings: ImageSettings, batch: int) -> Iterator[Seen]:
    """All samples in batches, with the pixels that evaluation sees; threads decode the next batch meanwhile."""
    parts = [samples[start : start + batch] for start in range(0, len(samples), batch)]
    with ThreadPoolExecutor(max_workers=min(8, cpu_count() or 1)) as pool:
        waiting = [pool.submit(_pixels, sample, settings=settings) for part in parts[:1] for sample in part]
        for number, part in enumerate(parts):
            following = parts[number + 1] if number + 1 < len(parts) else ()
            coming = [pool.submit(_pixels, sample, settings=settings) for sample in following]
            yield part, [future.result() for future in waiting]
            waiting = coming


def _why_not(data: StreamSettings, *, still: bool, studies: bool) -> str:
    """Why what the tower says cannot be kept, and what to set; empty if it can."""
    if not still:
        return "the image tower learns, so that it says something else after each step; lock it with --lock-image"
    if data.augment is not None:
        return "data.augment shows a picture differently each time; set it off with --set data.augment=null"
    if data.mirror:
        return "data.mirror turns some pictures left to right; set it off with --set data.mirror=0"
    if data.mix is not None:
        return "data.mix puts pictures together anew each time; set it off with --set data.mix=null"
    if studies:
        return "study= shows another picture of a study each time; take it away, and each picture is a sample"
    return ""


def _manifest(model: TwoTowers, precision: Precision) -> tuple[Manifest, torch.dtype]:
    tower, image = model.image, model.settings.image
    parts = None if image.parts is None else (image.parts.stage, image.parts.first)
    settings = (image.name, sorted(image.options.items()), image.eps, image.pool, parts)
    state = {name: t for name, t in tower.state_dict().items() if not name.startswith(("head.", "parts."))}
    frame = image.frame
    shown = f"{image.size} px, {frame.mode}, scaled to {frame.side(image.size)} by {frame.interpolation}"
    row = _look(model, torch.zeros(1, 3, image.size, image.size, dtype=torch.uint8), precision=precision)
    made = Manifest(
        tower=f"{image.name} {digest(settings, state)}",
        transform=f"{shown}, enlarged to {image.enlarged}" if image.enlarged else shown,
        precision=precision,
        width=row.shape[1],
    )
    return made, row.dtype


def _look(model: TwoTowers, pixels: Tensor, *, precision: Precision) -> Tensor:
    tower: ImageTower = model.image
    half = torch.autocast(model.device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    with quiet(model), half:
        return tower.look(pixels.to(model.device)).packed().cpu()


def _claim(home: Path, manifest: Manifest, *, held: ExitStack, tell: Tell) -> None:
    """Hold the folder against other runs, and say in it what its rows are, or see that it says the same."""
    try:
        try:
            held.enter_context(alone(home, wait=False))
        except BlockingIOError:
            tell(f"waiting for another run that fills {home}")
            held.enter_context(alone(home))
        path = home / MANIFEST
        if path.is_file():
            _require_same(_read(path), manifest, home=home)
        else:
            replace_text(path, TypeAdapter(Manifest).dump_json(manifest, indent=2).decode() + "\n")
        for part in home.glob("*.part"):
            part.unlink()
    except OSError as error:
        raise _cannot_write(home, error) from error


def _read(path: Path) -> Manifest:
    try:
        return TypeAdapter(Manifest).validate_json(path.read_bytes())
    except (ValidationError, ValueError, OSError) as error:
        raise UserError(
            f"{path} does not say what the features beside it are ({type(error).__name__}); remove the folder, or "
            "name another one with --cache"
        ) from error


def _require_same(made: Manifest, wanted: Manifest, *, home: Path) -> None:
    for field in fields(Manifest):
        before, now = getattr(made, field.name), getattr(wanted, field.name)
        if before != now:
            raise UserError(
                f"{str(home)!r} holds features of another {field.name}: {_short(before)}, and this one is "
                f"{_short(now)}; name another folder with --cache, or remove that one"
            )


def _short(value: object) -> str:
    """A value in words; of a hash, the beginning is enough."""
    return " ".join(word[:12] if len(word) == 64 else word for word in str(value).split())


def _keys(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """The key of each sample's image, so that rows of one image share one."""
    known: dict[ImageSource | None, int] = {None: NO_KEY}
    for sample in samples:
        if sample.image is not None and sample.image not in known:
            known[sample.image] = image_key(sample.image)
    return np.array([known[sample.image] for sample in samples], dtype=np.int64)


Shard = tuple[NDArray[np.int64], Tensor]


def _shards(home: Path, manifest: Manifest) -> list[Shard]:
    """The keys and rows of all shards; rows are mapped, not read."""
    found = []
    for path in sorted(home.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                keys, rows = file.get_tensor("keys"), file.get_tensor("rows")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}); remove it, and its pictures are looked at again") from error
        if rows.shape != (len(keys), manifest.width):
            raise UserError(
                f"{path} has rows of shape {tuple(rows.shape)} for {len(keys)} pictures, and not of {manifest.width} "
                "numbers each; remove it, and its pictures are looked at again"
            )
        found.append((keys.numpy(), rows))
    return found


def _find(wanted: NDArray[np.int64], shards: Sequence[Shard]) -> NDArray[np.int64]:
    """``(N, 2)``: the shard and row of each key, -1 of those that are nowhere."""
    sizes = [len(keys) for keys, _ in shards]
    if not sum(sizes):
        return np.full((len(wanted), 2), -1)
    keys = np.concatenate([keys for keys, _ in shards])
    places = np.stack([np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(n) for n in sizes])], axis=1)
    order = keys.argsort(kind="stable")
    at = order[np.minimum(keys.searchsorted(wanted, sorter=order), len(keys) - 1)]
    return np.where((keys[at] == wanted)[:, None], places[at], -1)


def _missing(keys: NDArray[np.int64], shards: Sequence[Shard]) -> NDArray[np.int64]:
    """The first sample of each picture that no shard has, in order."""
    firsts = np.unique(keys, return_index=True)[1]
    lacking = (_find(keys[firsts], shards)[:, 0] < 0) & (keys[firsts] != NO_KEY)
    return np.sort(firsts[lacking])


def _check_room(home: Path, size: int, *, pictures: int, tell: Tell) -> None:
    if not pictures:
        return
    free = shutil.disk_usage(home).free
    if size > free:
        raise UserError(
            f"the features of {pictures:,} pictures take {size / 1e9:.1f} GB, and {str(home)!r} has room for "
            f"{free / 1e9:.1f} GB; name another folder with --cache, or use none with --cache off"
        )
    tell(f"features of the locked image tower: {pictures:,} pictures to look at once, {size / 1e6:,.1f} MB in {home}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Pictures that one process looks at, and the shards that it writes."""

    model: TwoTowers
    home: Path
    precision: Precision
    batch: int
    shown: bool

    def do(self, samples: Sequence[Sample], *, keys: NDArray[np.int64]) -> None:
        """Look at some pictures and keep what is said of those that can be read."""
        made: list[tuple[Tensor, Tensor]] = []
        began, batches = time.monotonic(), -(-len(samples) // self.batch)
        images = decoded(samples, settings=self.model.settings.image, batch=self.batch)
        for number, (_, pixels) in enumerate(self._tracked(images, total=batches)):
            good = [k for k, p in enumerate(pixels) if isinstance(p, Tensor)]
            if good:
                stack = torch.stack([p for p in pixels if isinstance(p, Tensor)])
                rows = _look(self.model, stack, precision=self.precision)
                made.append((torch.from_numpy(keys[number * self.batch + np.array(good)]), rows))
            if made and (number + 1 == batches or self._full(made, seconds=time.monotonic() - began)):
                self._write(made)
                made, began = [], time.monotonic()

    def _tracked(self, images: Iterator[Seen], *, total: int) -> Iterator[Seen]:
        console = Console(stderr=True)
        shown = self.shown and console.is_terminal and total > 0
        what = "features of the locked image tower"
        return iter(track(images, what, total=total, console=console, disable=not shown, transient=True))

    def _full(self, made: Sequence[tuple[Tensor, Tensor]], *, seconds: float) -> bool:
        rows, size = sum(len(r) for _, r in made), sum(r.nbytes for _, r in made)
        return rows >= MOST_ROWS or size >= MOST_BYTES or seconds > MOST_SECONDS

    def _write(self, made: Sequence[tuple[Tensor, Tensor]]) -> None:
        """A shard gets its name when all of it is on disk."""
        path = self.home / f"{uuid.uuid4().hex}.safetensors"
        content = {"keys": torch.cat([keys for keys, _ in made]), "rows": torch.cat([rows for _, rows in made])}
        try:
            part = path.with_suffix(".part")
            save_file(content, part)
            sync(part)
            part.rename(path)
        except (OSError, SafetensorError) as error:
            raise _cannot_write(self.home, error) from error


def _cannot_write(home: Path, error: Exception) -> UserError:
    said = getattr(error, "strerror", None) or error
    return UserError(
        f"cannot write features to {str(home)!r}: {said}; what is written is kept, and the same command goes on from "
        "there",
        code=1,
    )


def _pixels(sample: Sample, *, settings: ImageSettings) -> Tensor | str:
    if sample.image is None:
        return "no image"
    try:
        return fit(decode(sample.image), size=settings.size, frame=settings.frame)
    except BadImage as error:
        return str(error)


def _why(sample: Sample, settings: ImageSettings) -> str:
    found = _pixels(sample, settings=settings)
    return found if isinstance(found, str) else "could not be read when the features were made"
