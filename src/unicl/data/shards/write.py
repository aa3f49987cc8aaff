"""Any source to WebDataset tars: resized, shuffled, in parallel, verified, and taken up again where it was stopped."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unicl.data.locks import alone
from unicl.data.quarantine import Quarantine
from unicl.data.shards.manifest import Manifest, Shard, ShardSettings, differences, read_manifest, save_manifest
from unicl.data.shards.records import MANIFEST, record
from unicl.data.shards.shrink import Stored, stored
from unicl.data.shards.tarfiles import Pixels, TarFile, packed_size, pixels_of
from unicl.data.sources import Source
from unicl.data.tars.offsets import ENDING
from unicl.errors import BadImage, UserError
from unicl.space import ImageSource, Sample

_QUARANTINE: Final = "quarantine.jsonl"
_AHEAD: Final = 8
"""Samples that are prepared ahead, for each worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A finished job; ``images`` were written by this run, in ``seconds``."""

    manifest: Manifest
    images: int
    seconds: float

    def report(self, out: Path) -> str:
        """What was written, in a few lines."""
        shards = self.manifest.shards
        size, read = sum(shard.size for shard in shards), sum(shard.read for shard in shards)
        count = sum(shard.samples for shard in shards)
        several = "s" * (len(shards) != 1)
        lines = [
            f"{count:,} samples in {len(shards):,} shard{several} in {out}, each read back and checked",
            f"{_gigabytes(read)} of images became {_gigabytes(size)} of shards",
        ]
        if self.images:
            rate = self.images / max(self.seconds, 1e-9)
            lines.append(f"{self.images:,} images in {self.seconds:,.1f} s: {rate:,.0f} a second")
        else:
            lines.append("all of it was there already: nothing to do")
        if left_out := sum(len(shard.left_out) for shard in shards):
            lines.append(f"{left_out:,} left out, listed in {out / _QUARANTINE}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """All samples in the order in which they are written; ``prefix`` stands before an id in messages."""

    samples: Sequence[Sample]
    settings: ShardSettings
    prefix: str
    digits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A sample ready to be written; without members it is left out for ``reason``."""

    place: int
    sample: Sample
    members: tuple[tuple[str, bytes], ...] = ()
    image: Stored | None = None
    reason: str = ""

    @property
    def size(self) -> int:
        return sum(packed_size(len(content)) for _, content in self.members)


@dataclass(slots=True)
class _Open:
    """The shard that is being written."""

    file: TarFile
    first: int
    images: int = 0
    read: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)


def shard(
    sources: Sequence[Source],
    out: Path,
    *,
    settings: ShardSettings = ShardSettings(),
    workers: int = 0,
    max_bad: int = 100,
    progress: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Summary:
    """Write the samples of ``sources`` as tars to the folder ``out``; reading it gives the same samples.

    Ids, captions, labels and namespaces are kept; with several sources, ids begin with the source's name. A folder
    with the same unfinished job is gone on with, and one that is finished is left as it is. An image that cannot be
    read is left out and listed in quarantine.jsonl, up to ``max_bad``. ``workers`` 0 is one for each processor.
    ``tell`` is given the plan once the folder is known to be right.
    Raises `UserError` if ``out`` holds other things or another job, or cannot be written.
    """
    job = _job(sources, settings)
    begun, started = monotonic(), 0
    try:
        with _alone(out):
            manifest = _begin(out, job=job, sources=sources)
            _sweep(out)
            if tell is not None:
                tell(plan(sources, settings, begun=len(manifest.shards)))
            started = sum(shard.images for shard in manifest.shards)
            if not manifest.finished:
                manifest = _write(job, manifest, out=out, workers=workers, max_bad=max_bad, progress=progress)
    except OSError as error:
        raise UserError(
            f"cannot write shards to {str(out)!r}: {error.strerror or error}; finished shards are kept, and the same "
            "command goes on from there",
            code=1,
        ) from error
    images = sum(shard.images for shard in manifest.shards) - started
    return Summary(manifest=manifest, images=images, seconds=monotonic() - begun)


def plan(sources: Sequence[Source], settings: ShardSettings, *, begun: int = 0) -> str:
    """What `shard` will do, in words; ``begun`` shards are there already."""
    names = ", ".join(f"{source.name} ({source.format})" for source in sources)
    total = sum(len(source.samples) for source in sources)
    limits = [f"{settings.samples:,} samples"] if settings.samples else []
    limits += [f"{settings.size_mb:,g} MB"] if settings.size_mb else []
    kept = f"images as JPEG of quality {settings.quality}, shorter side at most {settings.resize} pixels"
    lines = [
        f"{total:,} samples of {names} to shards of {' or '.join(limits)}",
        kept if settings.resize else "images copied as they are (--resize 256 makes them smaller)",
        "in the order of the data" if settings.shuffle is None else f"shuffled with seed {settings.shuffle}",
    ]
    lines += [f"shards that are there already: {begun:,}"] if begun else []
    lines += [note for source in sources for note in source.notes]
    lines += [
        f"the weight {source.weight:g} of {source.name} is not kept in shards: give it when you train"
        for source in sources
        if source.weight != 1
    ]
    return "\n".join(lines)


def _job(sources: Sequence[Source], settings: ShardSettings) -> _Job:
    several = len(sources) > 1
    samples = [
        replace(sample, id=f"{source.name}/{sample.id}") if several else sample
        for source in sources
        for sample in source.samples
    ]
    total = len(samples)
    order = range(total) if settings.shuffle is None else np.random.default_rng(settings.shuffle).permutation(total)
    return _Job(
        samples=[samples[k] for k in order],
        settings=settings,
        prefix="" if several else f"{sources[0].name}/",
        digits=max(4, len(str(total // (settings.samples or 1000)))),
    )


def _digest(job: _Job) -> str:
    found = blake2b(digest_size=16)
    for sample in job.samples:
        fields = (sample.id, sample.namespace, sample.captions, sample.labels, sample.image is None)
        found.update(repr(fields).encode("utf-8", "surrogatepass"))
        if sample.others:
            found.update(str(len(sample.others)).encode())
        if sample.findings:
            found.update(repr([(name, int(known)) for name, known in sample.findings]).encode())
        if sample.patient:
            found.update(sample.patient.encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def _begin(out: Path, *, job: _Job, sources: Sequence[Source]) -> Manifest:
    """The manifest of this job: what stands in the folder if it is the same, a new one if the folder is empty."""
    typed = tuple(str(source.path) for source in sources)
    wanted = Manifest(total=len(job.samples), settings=job.settings, sources=typed, digest=_digest(job))
    if not (out / MANIFEST).is_file():
        others = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith((".", f"{MANIFEST}.")))
        if others:
            raise UserError(f"{str(out)!r} holds other things ({others[0]!r}); give a new or an empty folder")
        save_manifest(out, wanted)
        return wanted
    found = read_manifest(out / MANIFEST)
    if changed := differences(found, wanted):
        raise UserError(
            f"{str(out)!r} holds another job: {'; '.join(changed)}. Give another folder, or remove that one"
        )
    whole = [_is_whole(out / shard.name, shard=shard) for shard in found.shards]
    if all(whole):
        return found
    return replace(found, finished=False, shards=found.shards[: whole.index(False)])


def _sweep(out: Path) -> None:
    """Remove what a killed run left half written; the folder is this job's, and no other process writes to it."""
    for pattern in ("*.part", f"*.part{ENDING}"):
        for path in out.glob(pattern):
            path.unlink()


def _is_whole(path: Path, *, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.size


def _write(job: _Job, manifest: Manifest, *, out: Path, workers: int, max_bad: int, progress: bool) -> Manifest:
    quarantine = _quarantine(manifest, out=out, limit=max_bad)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress)
    with _workers(workers or os.cpu_count() or 1) as (pool, ahead), shown as bar:
        task = bar.add_task("writing shards", total=manifest.total, completed=manifest.done)
        made = _prepared(job, manifest.done, pool=pool, ahead=ahead)
        look = partial(_look, pool=pool)
        advance = partial(bar.advance, task)
        for found in _shards(job, made, out=out, manifest=manifest, look=look, quarantine=quarantine, advance=advance):
            manifest = replace(manifest, shards=(*manifest.shards, found), finished=found.stop == manifest.total)
            save_manifest(out, manifest)
    return manifest


def _shards(
    job: _Job,
    made: Iterator[_Made],
    *,
    out: Path,
    manifest: Manifest,
    look: Callable[[Sequence[ImageSource]], Sequence[Pixels]],
    quarantine: Quarantine,
    advance: Callable[[], None],
) -> Iterator[Shard]:
    """Shards by their order, each whole on the disk; what is left out belongs to the shard before it."""
    number = len(manifest.shards)
    current = _open(out, number=number, first=manifest.done, digits=job.digits)
    try:
        for item in made:
            if item.reason:
                current.left_out.append((job.prefix + item.sample.id, item.reason))
                quarantine.add(job.prefix + item.sample.id, reason=item.reason)
            elif _is_full(current, item, settings=job.settings):
                yield _close(current, stop=item.place, look=look)
                number += 1
                current = _open(out, number=number, first=item.place, digits=job.digits)
            if not item.reason:
                _add(current, item)
            advance()
        if not current.file.samples:
            raise UserError(f"none of the {manifest.total:,} samples can be read; see {out / _QUARANTINE}", code=1)
        yield _close(current, stop=manifest.total, look=look)
    except BaseException:
        current.file.drop()
        raise


def _open(out: Path, *, number: int, first: int, digits: int) -> _Open:
    return _Open(file=TarFile(out / f"{number:0{digits}}.tar"), first=first)


def _is_full(current: _Open, item: _Made, *, settings: ShardSettings) -> bool:
    if not current.file.samples:
        return False
    by_count = settings.samples is not None and current.file.samples >= settings.samples
    return by_count or (settings.size_mb is not None and current.file.size + item.size > settings.size_mb * 1e6)


def _add(current: _Open, item: _Made) -> None:
    image = item.image
    # A copy was decoded just before, and its bytes are under the checksum of the whole shard.
    pixels = Pixels(image.height, image.width) if image is not None and image.made else None
    current.file.add(item.sample, item.members, pixels=pixels)
    current.images += image is not None
    current.read += 0 if image is None else image.read


def _close(current: _Open, *, stop: int, look: Callable[[Sequence[ImageSource]], Sequence[Pixels]]) -> Shard:
    samples = current.file.samples
    size, digest = current.file.finish(look)
    return Shard(
        name=current.file.path.name,
        first=current.first,
        stop=stop,
        samples=samples,
        images=current.images,
        read=current.read,
        size=size,
        sha256=digest,
        verified=True,
        left_out=tuple(current.left_out),
    )


def _prepared(job: _Job, start: int, *, pool: ThreadPoolExecutor, ahead: int) -> Iterator[_Made]:
    """The samples from a place on, in order, made by the workers ahead of time."""
    waiting: deque[Future[_Made]] = deque()
    for place in range(start, len(job.samples)):
        waiting.append(pool.submit(_make, job, place))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _make(job: _Job, place: int) -> _Made:
    sample, settings = job.samples[place], job.settings
    try:
        images = [stored(source, shorter=settings.resize, quality=settings.quality) for source in sample.images]
    except BadImage as error:
        return _Made(place=place, sample=sample, reason=str(error) or "cannot be read")
    key, members = f"{place:09}", []
    image = images[0] if images else None
    for number, each in enumerate(images):
        members.append((f"{key}.{number}.{each.extension}" if number else f"{key}.{each.extension}", each.content))
    if sample.captions:
        # Other programs read one caption from here; all of them are in the record.
        members.append((f"{key}.txt", sample.captions[0].encode("utf-8", "replace")))
    size = (0, 0) if image is None else (image.width, image.height)
    members.append((f"{key}.json", record(sample, width=size[0], height=size[1])))
    return _Made(place=place, sample=sample, members=tuple(members), image=image)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _look(images: Sequence[ImageSource], *, pool: ThreadPoolExecutor) -> list[Pixels]:
    return list(pool.map(pixels_of, images))


def _quarantine(manifest: Manifest, *, out: Path, limit: int) -> Quarantine:
    """The list of what the finished shards left out; what an unfinished one did is found again."""
    (out / _QUARANTINE).unlink(missing_ok=True)
    quarantine = Quarantine(limit=limit, path=out / _QUARANTINE)
    for shard in manifest.shards:
        for id, reason in shard.left_out:
            quarantine.add(id, reason=reason)
    return quarantine


@contextmanager
def _workers(count: int) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Threads that work on one image each, and how many samples they prepare ahead."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(count)
    try:
        yield pool, _AHEAD * count
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other processes from writing to the folder."""
    with ExitStack() as held:
        try:
            held.enter_context(alone(out, wait=False))
        except BlockingIOError as error:
            raise UserError(
                f"another process writes to {str(out)!r} just now; wait for it, or give another folder"
            ) from error
        yield
