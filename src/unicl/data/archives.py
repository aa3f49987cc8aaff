"""WebDataset archives: tar files whose members with one name are one sample."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from unicl.data.columns import listed
from unicl.data.folders import SUFFIXES
from unicl.data.rows import Group, Reading, group_samples
from unicl.errors import UserError
from unicl.space import ImageSource, Sample, Slice

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
ZSTANDARD = b"\x28\xb5\x2f\xfd"
TEXTS = ("txt", "json", "cls", "text", "caption", "title", "label")
LONGEST_TEXT = 1 << 24


@dataclass(frozen=True, slots=True)
class _Parts:
    """What stands under one name: images and text members by extension."""

    images: dict[str, ImageSource] = field(default_factory=dict)
    fields: dict[str, bytes] = field(default_factory=dict)


def tar_samples(reading: Reading) -> Iterator[Sample]:
    """Tar files as img2dataset and webdataset write them; images are read in place, by their offset in the file."""
    files = reading.spec.files(*TARS)
    reading.ledger.columns["image"] = reading.spec.image or "image members"
    groups = (group for name, path in files.items() for group in _groups(path, name=name, reading=reading))
    yield from group_samples(groups, reading)


def _groups(path: Path, *, name: str, reading: Reading) -> Iterator[Group]:
    found = _index(path, name=name, reading=reading)
    wanted = reading.spec.image
    extensions = dict.fromkeys(extension for parts in found.values() for extension in parts.images)
    if wanted and wanted not in extensions:
        raise UserError(f"{name} has no images with the extension {wanted!r}; it has {listed(extensions)}")
    for key, parts in found.items():
        # Of photo.jpg and photo.mask.png, the one with the plain extension is the image.
        chosen = wanted or min(parts.images, key=lambda extension: extension.count("."), default="")
        image = parts.images.get(chosen)
        if image is None and parts.fields:
            reading.ledger.count("samples without an image", place=f"{name}/{key}")
        if image is not None or parts.fields:
            yield Group(id=f"{name}/{key}", stem=f"{name}/{key}", image=image, fields=parts.fields)


def _index(path: Path, *, name: str, reading: Reading) -> dict[str, _Parts]:
    """Every sample of an archive; of one that is cut off, those before the cut, with a note."""
    found: dict[str, _Parts] = {}
    key = ""
    try:
        with _opened(path, name=name) as (tar, packed):
            if packed:
                reading.ledger.note(f"{name} is compressed: its images are held in memory; unpacked, they stay on disk")
            for member, key, extension in _members(tar, name=name, reading=reading):
                _take(member, tar, extension=extension, path=path, packed=packed, parts=found.setdefault(key, _Parts()))
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        found.pop(key, None)
        if not found:
            raise UserError(
                f"{name} cannot be read as a tar archive, it is cut off or of another format: {error}"
            ) from error
        reading.ledger.note(f"{name} is cut off after {len(found):,} samples, which are used; fetch or write it again")
    if not found:
        raise UserError(f"{name} holds no files; wanted are members such as 000000.jpg and 000000.txt")
    return found


@contextmanager
def _opened(path: Path, *, name: str) -> Iterator[tuple[tarfile.TarFile, bool]]:
    with path.open("rb") as file:
        start = file.read(8)
    packed = start.startswith(PACKED)
    if start.startswith(ZSTANDARD):
        raise UserError(f"{name} is compressed with zstandard; unpack it first: zstd -d {path.name}")
    with tarfile.open(path, mode="r:*" if packed else "r:") as tar:
        yield tar, packed


def _members(tar: tarfile.TarFile, *, name: str, reading: Reading) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """The regular files with their key and extension: the name is split at the first dot of its last part."""
    for member in tar:
        parts = PurePosixPath(member.name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise UserError(
                f"{name} has the member {member.name!r}, which leaves the archive; make it without such names"
            )
        if not member.isreg() or member.issparse():
            if not member.isdir():
                reading.ledger.count("links and devices in archives, left out", place=f"{name}/{member.name}")
            continue
        stem, _, extension = parts.name.partition(".")
        if stem:
            yield member, str(parts.with_name(stem)), extension.casefold()


def _take(
    member: tarfile.TarInfo, tar: tarfile.TarFile, *, extension: str, path: Path, packed: bool, parts: _Parts
) -> None:
    ending = extension.rpartition(".")[2]
    if f".{ending}" in SUFFIXES:
        parts.images[extension] = _read(member, tar) if packed else _slice(member, path)
    elif ending in TEXTS and member.size <= LONGEST_TEXT:
        parts.fields[extension] = _read(member, tar)


def _slice(member: tarfile.TarInfo, path: Path) -> Slice:
    return Slice(path, member.offset_data, member.size)


def _read(member: tarfile.TarInfo, tar: tarfile.TarFile) -> bytes:
    file = tar.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) < member.size:
        raise EOFError(f"{member.name} ends early")
    return content
