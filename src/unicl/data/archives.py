"""WebDataset archives: tar files whose members with one name are one sample."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from unicl.data.folders import SUFFIXES
from unicl.data.rows import Group, Reading, group_samples
from unicl.errors import UserError
from unicl.space import ImageSource, Sample, Slice

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
TEXTS = ("txt", "json", "cls", "text", "caption", "title", "label")
LONGEST_TEXT = 1 << 24


class _Parts:
    """What was found under one name so far."""

    __slots__ = ("fields", "images")

    def __init__(self) -> None:
        self.images: dict[str, ImageSource] = {}
        self.fields: dict[str, bytes] = {}


def tar_samples(reading: Reading) -> Iterator[Sample]:
    """Tar files as img2dataset and webdataset write them; images are read in place, by their offset in the file."""
    files = reading.spec.files(*TARS)
    reading.ledger.columns["image"] = reading.spec.image or "image members"
    groups = (group for name, path in files.items() for group in _groups(path, name=name, reading=reading))
    yield from group_samples(groups, reading)


def _groups(path: Path, *, name: str, reading: Reading) -> Iterator[Group]:
    found: dict[str, _Parts] = {}
    with _opened(path) as (tar, packed):
        for member in _members(tar, path=path, name=name, reading=reading):
            key, extension = _split(member.name, where=name)
            _take(member, tar, parts=found.setdefault(key, _Parts()), extension=extension, path=None if packed else path)
    if not found:
        raise UserError(f"{name} holds no files that can be read; it is empty or cut off")
    for key, parts in found.items():
        image = _image(parts, wanted=reading.spec.image)
        if image is None and not parts.fields:
            continue
        if image is None:
            reading.ledger.count("samples without an image", place=f"{name}/{key}")
        yield Group(id=f"{name}/{key}", image=image, fields=parts.fields)
