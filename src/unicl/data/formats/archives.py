"""WebDataset archives: tar files whose members with one name are one sample."""

import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath

from unicl.data.formats.columns import listed
from unicl.data.formats.folders import SUFFIXES
from unicl.data.formats.rows import Group, Reading, group_samples
from unicl.data.shards.records import is_record, recorded_samples, unfinished
from unicl.data.tars.offsets import (
    DamagedIndex,
    Member,
    Members,
    has_index,
    kept_index,
    read_index,
    stamp_of,
    write_index,
)
from unicl.data.tars.streamed import shelf
from unicl.errors import UserError
from unicl.space import ImageSource, RemoteTar, Sample, Slice, Streamed

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


def is_image(extension: str) -> bool:
    """Whether a member with this extension ("jpg", "mask.png") is taken for an image."""
    return f".{extension.rpartition('.')[2]}" in SUFFIXES


def tar_samples(reading: Reading) -> Iterator[Sample]:
    """Tar files as img2dataset and webdataset write them; images are read in place, by their offset in the file."""
    files = reading.spec.files(*TARS)
    if reading.spec.stream:
        _index_remote(files, reading=reading)
    reading.ledger.columns["image"] = reading.spec.image or "image members"
    if (note := unfinished(reading.spec.path)) is not None:
        reading.ledger.note(note)
    groups = (group for name, path in files.items() for group in _groups(path, name=name, reading=reading))
    as_columns = any(field is not None for field in (reading.spec.image, reading.spec.text, reading.spec.label))
    for recorded, run in groupby(groups, key=lambda group: is_record(group) and not as_columns):
        yield from (recorded_samples if recorded else group_samples)(run, reading)


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
            several = sorted(filter(_is_numbered, parts.images), key=_number)
            others = tuple(parts.images[extension] for extension in several)
            yield Group(id=f"{name}/{key}", stem=f"{name}/{key}", image=image, fields=parts.fields, others=others)


def _index(path: Path, *, name: str, reading: Reading) -> dict[str, _Parts]:
    """Every sample of an archive, by its index or else by looking through it."""
    if reading.spec.stream:
        members, place_of = _streamed(path, reading=reading)
    else:
        members = _known(path, name=name, reading=reading) or _scanned(path, name=name, reading=reading)
        place_of = partial(Slice, path)
    for place in members.left_out:
        reading.ledger.count("links and devices in archives, left out", place=f"{name}/{place}")
    found: dict[str, _Parts] = {}
    for member in members.found:
        parts = found.get(member.key)
        if parts is None:
            parts = found[member.key] = _Parts()
        if is_image(member.extension):
            content = member.content
            parts.images[member.extension] = place_of(member.offset, member.size) if content is None else content
        elif member.content is not None:
            parts.fields[member.extension] = member.content
    if not found:
        raise UserError(f"{name} holds no files; wanted are members such as 000000.jpg and 000000.txt")
    return found


def _is_numbered(extension: str) -> bool:
    return extension.partition(".")[0].isdecimal()


def _number(extension: str) -> int:
    return int(extension.partition(".")[0])


def _index_remote(files: Mapping[str, Path], *, reading: Reading) -> None:
    """Look once through each remote tar that has no index yet; of the tars themselves only some are kept."""
    new = {path: name for name, path in files.items() if not has_index(path)}
    for tar in shelf().each([_remote(path, size=0, reading=reading) for path in new], name=reading.name):
        if not has_index(tar.path):  # nor made by another process meanwhile
            _scanned(tar.path, name=new[tar.path], reading=reading)
        if not has_index(tar.path):
            raise UserError(
                f"{tar.address} is compressed or cut off, and cannot be streamed; take ?stream= away to keep it whole",
                code=1,
            )


def _streamed(path: Path, *, reading: Reading) -> tuple[Members, Callable[[int, int], ImageSource]]:
    """The members of a remote tar by its index, and what makes an image of a place in it."""
    known = kept_index(path)
    if known is None:
        raise UserError(f"the index of {path.name} in {path.parent} is damaged; remove it, it is made anew", code=1)
    return known[0], partial(Streamed, _remote(path, size=known[1], reading=reading))


def _remote(path: Path, *, size: int, reading: Reading) -> RemoteTar:
    return RemoteTar(reading.spec.remote[reading.spec.paths.index(path)], path, size)


def _known(path: Path, *, name: str, reading: Reading) -> Members | None:
    try:
        return read_index(path)
    except DamagedIndex:
        reading.ledger.note(f"the index of {name} was damaged and is made anew")
    return None


def _scanned(path: Path, *, name: str, reading: Reading) -> Members:
    """The members of an archive, and its index written; of one that is cut off, those before the cut, with a note."""
    found: list[Member] = []
    left_out: list[str] = []
    key = ""
    try:
        stamp = stamp_of(path)
        with _opened(path, name=name) as (tar, packed):
            if packed:
                reading.ledger.note(f"{name} is compressed: its images are held in memory; unpacked, they stay on disk")
            for member, key, extension in _members(tar, name=name, left_out=left_out):
                found.append(_member(member, tar, key=key, extension=extension, packed=packed))
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        found = [member for member in found if member.key != key]
        if not found:
            raise UserError(
                f"{name} cannot be read as a tar archive, it is cut off or of another format: {error}"
            ) from error
        count = len({member.key for member in found})
        reading.ledger.note(f"{name} is cut off after {count:,} samples, which are used; fetch or write it again")
        return Members(found, left_out)
    members = Members(found, left_out)
    if not packed:
        write_index(path, members, stamp=stamp)
    return members


@contextmanager
def _opened(path: Path, *, name: str) -> Iterator[tuple[tarfile.TarFile, bool]]:
    with path.open("rb") as file:
        start = file.read(8)
    packed = start.startswith(PACKED)
    if start.startswith(ZSTANDARD):
        raise UserError(f"{name} is compressed with zstandard; unpack it first: zstd -d {path.name}")
    with tarfile.open(path, mode="r:*" if packed else "r:") as tar:
        yield tar, packed


def _members(tar: tarfile.TarFile, *, name: str, left_out: list[str]) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """The regular files with their key and extension: the name is split at the first dot of its last part."""
    for member in tar:
        parts = PurePosixPath(member.name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise UserError(
                f"{name} has the member {member.name!r}, which leaves the archive; make it without such names"
            )
        if not member.isreg() or member.issparse():
            if not member.isdir():
                left_out.append(member.name)
            continue
        stem, _, extension = parts.name.partition(".")
        if stem:
            yield member, str(parts.with_name(stem)), extension.casefold()


def _member(info: tarfile.TarInfo, tar: tarfile.TarFile, *, key: str, extension: str, packed: bool) -> Member:
    is_text = extension.rpartition(".")[2] in TEXTS and info.size <= LONGEST_TEXT
    content = _read(info, tar) if is_text or (packed and is_image(extension)) else None
    return Member(key, extension, info.offset_data, info.size, content)


def _read(member: tarfile.TarInfo, tar: tarfile.TarFile) -> bytes:
    file = tar.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) < member.size:
        raise EOFError(f"{member.name} ends early")
    return content
