"""The list of a folder's shards: what they are made of, and how far the work is."""

import json
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from unicl.data.shards.records import MANIFEST
from unicl.data.tars.offsets import replace_file
from unicl.errors import UserError

SMALLEST_SIDE: Final = 8
USUAL: Final = 10_000
"""Samples of a shard if nothing else is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSettings:
    """What the shards are like; two runs with equal settings and samples write equal bytes.

    ``resize`` is the length of the shorter side in pixels, None copies images as they are; ``quality`` is that of
    JPEG, 1 to 100. A shard is full at ``per_shard`` samples or ``size_mb`` (10^6 bytes), whichever comes first.
    ``shuffle`` is a seed; None keeps the order of the source.
    """

    resize: int | None = None
    quality: int = 95
    per_shard: int | None = None
    size_mb: float | None = None
    shuffle: int | None = 0

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < SMALLEST_SIDE:
            raise UserError(f"resize={self.resize}: the shorter side must have at least {SMALLEST_SIDE} pixels")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality} is not a quality of JPEG between 1 and 100; 95 is the default")
        if self.per_shard is not None and self.per_shard < 1:
            raise UserError(f"per_shard={self.per_shard}: a shard holds at least 1 sample; {USUAL:,} is the default")
        if self.size_mb is not None and not 0 < self.size_mb < inf:
            raise UserError(f"size_mb={self.size_mb} is no size; 500 is usual")
        if self.shuffle is not None and self.shuffle < 0:
            raise UserError(f"shuffle={self.shuffle}: a seed is 0 or more")

    @property
    def samples(self) -> int | None:
        """How many samples a shard holds at most; None if only its size counts."""
        return USUAL if self.per_shard is None and self.size_mb is None else self.per_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A finished shard: it holds what was good of the places ``first`` to ``stop`` of the job's order.

    ``read`` is the bytes of its images in the source, ``size`` those of the tar; ``left_out`` lists id and reason.
    """

    name: str
    first: int
    stop: int
    samples: int
    images: int
    read: int
    size: int
    sha256: str
    verified: bool
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `shards.json` says: what is written, from what, and how far it is.

    ``digest`` is of all samples in the order in which they are written, ``total`` their number.
    """

    unicl: int = 1
    finished: bool = False
    total: int
    settings: ShardSettings
    sources: tuple[str, ...]
    digest: str
    shards: tuple[Shard, ...] = ()

    @property
    def done(self) -> int:
        """How many places of the order are written or left out."""
        return self.shards[-1].stop if self.shards else 0


def read_manifest(path: Path) -> Manifest:
    """What a list of shards says. Raises `UserError` if it is none."""
    try:
        return TypeAdapter(Manifest).validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{str(path)!r} is no list of shards; give another folder, or remove that one") from error


def save_manifest(out: Path, manifest: Manifest) -> None:
    """Write the list of a folder's shards, and wait until it is on the disk."""
    content = json.dumps(asdict(manifest), indent=1, ensure_ascii=True)
    replace_file(out / MANIFEST, f"{content}\n".encode(), sync=True)


def differences(found: Manifest, wanted: Manifest) -> list[str]:
    """In which ways two jobs are not the same one, in words."""
    before, now = asdict(found.settings), asdict(wanted.settings)
    settings = [
        f"{name} was {_given(before[name])} and is {_given(now[name])}" for name in now if before[name] != now[name]
    ]
    if found.digest == wanted.digest or before["shuffle"] != now["shuffle"]:
        return settings
    if found.sources != wanted.sources:
        return [*settings, f"the data was {', '.join(found.sources)} and is {', '.join(wanted.sources)}"]
    return [*settings, f"the data has changed: it had {found.total:,} samples and has {wanted.total:,}"]


def _given(value: object) -> object:
    return "not given" if value is None else value
