import os
import tarfile

import pytest

from pictures import encoded, noise, picture
from unicl.data.image import decode
from unicl.data.shards.records import record
from unicl.data.shards.tarfiles import Pixels, TarFile, digest_of, packed_size, pixels_of
from unicl.data.sources import load
from unicl.data.tars.offsets import ENDING
from unicl.errors import UserError
from unicl.space import Sample


def look(images):
    return [pixels_of(image) for image in images]


def fill(file, *, count=3, texts=0):
    for k in range(count + texts):
        sample = Sample(id=f"红/{k}", image=b"x" if k < count else None, captions=(f"caption {k}",), namespace="n")
        image = [(f"{k:09}.png", picture(k))] if k < count else []
        members = [*image, (f"{k:09}.json", record(sample, width=24, height=20))]
        file.add(sample, members, pixels=Pixels(20, 24) if k < count else None)
    return file


def spoil(file):
    """Change a bit of the last picture on the disk while it is still being written."""
    file._tar.fileobj._file.flush()
    content = bytearray(file.part.read_bytes())
    at = content.rfind(b"IDAT") + 30
    with file.part.open("r+b") as part:
        part.seek(at)
        part.write(bytes([content[at] ^ 1]))


def test_equal_members_give_equal_bytes_with_fixed_owners_and_times(tmp_path):
    for name in ("a.tar", "b.tar"):
        size, digest = fill(TarFile(tmp_path / name), texts=1).finish(look)
        assert size == (tmp_path / name).stat().st_size
        assert digest == digest_of(tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
    assert facts == {(0, 0, 0, "", "", 0o644)}


def test_the_size_so_far_is_that_of_the_members(tmp_path):
    file = fill(TarFile(tmp_path / "a.tar"))
    size, samples = file.size, file.samples
    file.finish(look)
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    assert samples == 3
    assert (
        size == sum(packed_size(m.size) for m in members) == members[-1].offset_data + 512 * -(-members[-1].size // 512)
    )


def test_it_has_its_name_only_when_it_is_whole_and_its_index_lies_beside_it(tmp_path):
    file = fill(TarFile(tmp_path / "a.tar"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.part"]
    file.finish(look)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", f"a.tar{ENDING}"]
    facts = (tmp_path / "a.tar").stat()
    samples = load(str(tmp_path / "a.tar")).samples
    (tmp_path / "a.tar").write_bytes(bytes(facts.st_size))
    os.utime(tmp_path / "a.tar", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert load(str(tmp_path / "a.tar")).samples == samples


def test_what_changed_on_the_disk_is_found_by_the_checksum(tmp_path):
    file = fill(TarFile(tmp_path / "a.tar"))
    spoil(file)
    with pytest.raises(UserError, match=r"a.tar was written and read back, and its checksum is another") as caught:
        file.finish(look)
    assert caught.value.code == 1
    file.drop()
    assert list(tmp_path.iterdir()) == []


def test_images_are_decoded_again_before_it_counts(tmp_path):
    sample = Sample(id="a", image=b"x")
    whole = encoded(noise(40, 40), "JPEG")
    for content, said in (
        (whole[:300], "an image cannot be decoded: cut off"),
        (picture(), "an image has another size"),
    ):
        file = TarFile(tmp_path / "a.tar")
        file.add(sample, [("0.jpg", content), ("0.json", record(sample))], pixels=Pixels(40, 40))
        with pytest.raises(UserError, match=said):
            file.finish(look)
        file.drop()
    copied = TarFile(tmp_path / "a.tar")
    copied.add(sample, [("0.jpg", whole), ("0.json", record(sample))], pixels=None)
    copied.finish(lambda images: pytest.fail("a copy is not decoded") if images else [])


def test_samples_that_read_back_as_others_are_found(tmp_path):
    file = TarFile(tmp_path / "a.tar")
    file.add(Sample(id="a", captions=("one",)), [("0.json", record(Sample(id="a", captions=("two",))))], pixels=None)
    with pytest.raises(UserError, match="its samples are others"):
        file.finish(look)


def test_pixels_are_counted_by_decoding():
    source = encoded(noise(30, 50), "JPEG")
    assert pixels_of(source) == Pixels(*decode(source).shape[1:]) == Pixels(30, 50)
