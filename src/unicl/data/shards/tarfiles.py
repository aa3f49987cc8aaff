"""One shard on its way to the disk: members added, then read back and compared before it gets its name."""

import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from unicl.data.formats.archives import tar_samples
from unicl.data.formats.cells import Ledger
from unicl.data.formats.rows import Reading
from unicl.data.image import decode
from unicl.data.spec import Spec
from unicl.data.tars.offsets import ENDING
from unicl.errors import BadImage, UserError
from unicl.space import ImageSource, Sample

BLOCK = 512
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Pixels:
    """What decoding an image of a shard must give: its size."""

    height: int
    width: int


class TarFile:
    """A tar that is written under ``NAME.part``, the same bytes for the same members; `finish` gives it its name.

    Owners, modes and times of its members are fixed. ``size`` is that of the members so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self.size = 0
        self._expected: list[tuple[Sample, Pixels | None]] = []
        self._hash = sha256()
        self._file = self.part.open("wb")
        self._tar = tarfile.open(fileobj=self, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[call-overload]  # noqa: SIM115

    @property
    def samples(self) -> int:
        """How many samples it holds."""
        return len(self._expected)

    def write(self, content: bytes) -> int:
        """Bytes from the tar to the file (the half of a file object that `tarfile` needs)."""
        self._hash.update(content)
        return self._file.write(content)

    def tell(self) -> int:
        """Where the file is written next."""
        return self._file.tell()

    def add(self, sample: Sample, members: Iterable[tuple[str, bytes]], *, pixels: Pixels | None) -> None:
        """A sample; ``members`` are names and contents, ``pixels`` the size of an image that is to be decoded again."""
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            self._tar.addfile(info, BytesIO(content))
            self.size += packed_size(len(content))
        self._expected.append((sample, pixels))

    def finish(self, look: Callable[[Sequence[ImageSource]], Sequence[Pixels]]) -> tuple[int, str]:
        """Bring it to the disk, read it back, compare, and give it its name; returns its size and SHA-256.

        ``look`` decodes images. Raises `UserError` if what is read is not what was written.
        """
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        _forget(self._file.fileno())
        self._file.close()
        digest = self._hash.hexdigest()
        if digest_of(self.part) != digest:
            raise self._wrong("its checksum is another")
        self._compare(look)
        size = self.part.stat().st_size
        self.part.replace(self.path)
        index = self.part.with_name(self.part.name + ENDING)
        if index.is_file():
            index.replace(self.path.with_name(self.path.name + ENDING))
        return size, digest

    def drop(self) -> None:
        """Give it up: nothing of it is left."""
        self._file.close()
        self.part.unlink(missing_ok=True)

    def _compare(self, look: Callable[[Sequence[ImageSource]], Sequence[Pixels]]) -> None:
        spec = Spec(typed=str(self.part), path=self.part, paths=(self.part,))
        reading = Reading(spec=spec, name=self.path.name, namespace="", names=None, ledger=Ledger())
        found = list(tar_samples(reading))
        if [_plain(sample) for sample in found] != [_plain(sample) for sample, _ in self._expected]:
            raise self._wrong("its samples are others")
        pairs = zip(found, self._expected, strict=True)
        images = [(sample.image, pixels) for sample, (_, pixels) in pairs if sample.image is not None and pixels]
        try:
            seen = look([image for image, _ in images])
        except BadImage as error:
            raise self._wrong(f"an image cannot be decoded: {error}") from error
        if list(seen) != [pixels for _, pixels in images]:
            raise self._wrong("an image has another size")

    def _wrong(self, what: str) -> UserError:
        return UserError(
            f"{self.path.name} was written and read back, and {what}: the disk or the memory of this machine is at "
            "fault; the shards before it are whole, and the same command goes on from there",
            code=1,
        )


def packed_size(size: int) -> int:
    """The bytes that a member takes in a tar: its header, and its content in blocks."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    found = sha256()
    with path.open("rb") as file:
        while content := file.read(CHUNK):
            found.update(content)
    return found.hexdigest()


def pixels_of(image: ImageSource) -> Pixels:
    """The size of an image, by decoding all of it. Raises `BadImage`."""
    height, width = decode(image).shape[1:]
    return Pixels(height, width)


def _forget(handle: int) -> None:
    """What is read next comes from the disk, where the system can be asked for that."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def _plain(sample: Sample) -> tuple[object, ...]:
    known = sample.findings, sample.patient
    return sample.id, sample.captions, sample.labels, sample.namespace, *known, len(sample.images)
