import io
import os
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from pictures import picture
from unicl.data.sources import load, read_bytes
from unicl.data.tars.offsets import (
    ENDING,
    DamagedIndex,
    Member,
    Members,
    cache_folder,
    has_index,
    kept_index,
    read_index,
    replace_file,
    stamp_of,
    write_index,
)
from unicl.space import Slice


def pack(path, count, *, text="caption", links=0):
    """A tar of pictures with captions."""
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            for ending, content in (("png", picture(number)), ("txt", f"{text} {number}".encode())):
                info = tarfile.TarInfo(f"{number:04}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        for number in range(links):
            link = tarfile.TarInfo(f"link{number}.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    return path


def index_of(tar):
    return tar.with_name(tar.name + ENDING)


def blank(tar):
    """Overwrite a tar with zeros, keeping size and time: whoever still finds its samples did not look through it."""
    facts = tar.stat()
    tar.write_bytes(bytes(facts.st_size))
    os.utime(tar, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_the_second_start_reads_the_index_and_not_the_tar(tmp_path):
    tar = pack(tmp_path / "t.tar", 5)
    first = load(str(tar))
    content = tar.read_bytes()
    blank(tar)
    second = load(str(tar))
    assert second.samples == first.samples
    assert second.samples[3].captions == ("caption 3",)
    assert content[slice(*_range(second.samples[3].image))] == picture(3)


def _range(image):
    assert isinstance(image, Slice)
    return image.offset, image.offset + image.size


def test_an_index_holds_any_name_and_any_text(tmp_path):
    tar = pack(tmp_path / "t.tar", 1)
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    members = Members(
        (
            Member("水果/苹果", "txt", 512, 4, "红色".encode()),
            Member("a\nb", "mask.png", 1024, 7),
            Member(odd, "txt", 2048, 0, b""),
            Member("", "json", 1 << 40, 3, b"{}\n"),
        ),
        ("l.jpg", odd),
    )
    write_index(tar, members, stamp=stamp_of(tar))
    assert read_index(tar) == members


def test_an_empty_index_is_an_index(tmp_path):
    tar = pack(tmp_path / "t.tar", 0)
    write_index(tar, Members(()), stamp=stamp_of(tar))
    assert read_index(tar) == Members(())


def test_a_tar_that_was_written_again_is_looked_through_again(tmp_path):
    tar = pack(tmp_path / "t.tar", 4)
    load(str(tar))
    pack(tar, 6)
    assert len(load(str(tar)).samples) == 6


def test_a_tar_of_the_same_size_and_another_time_is_looked_through_again(tmp_path):
    tar = pack(tmp_path / "t.tar", 4, text="before")
    os.utime(tar, ns=(1, 1))
    load(str(tar))
    size = tar.stat().st_size
    pack(tar, 4, text="behind")
    assert tar.stat().st_size == size
    assert load(str(tar)).samples[0].captions == ("behind 0",)


def test_links_are_counted_from_the_index_too(tmp_path):
    tar = pack(tmp_path / "t.tar", 2, links=3)
    notes = ("links and devices in archives, left out: 3 (first: t.tar/link0.jpg)",)
    assert load(str(tar)).notes == notes
    assert load(str(tar)).notes == notes


@pytest.mark.parametrize("keep", [0, 10, 300, -1])
def test_an_index_that_is_cut_off_is_made_anew_with_a_note(tmp_path, keep):
    tar = pack(tmp_path / "t.tar", 3)
    samples = load(str(tar)).samples
    whole = index_of(tar).read_bytes()
    index_of(tar).write_bytes(whole[:keep])
    again = load(str(tar))
    assert again.samples == samples
    assert again.notes == ("the index of t.tar was damaged and is made anew",)
    assert load(str(tar)).notes == ()


def test_any_changed_bit_of_an_index_is_found(tmp_path):
    tar = pack(tmp_path / "t.tar", 3)
    load(str(tar))
    whole = index_of(tar).read_bytes()
    rng = random.Random(0)
    for place in [*range(60), *rng.sample(range(len(whole)), 300)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        index_of(tar).write_bytes(changed)
        with pytest.raises(DamagedIndex):
            read_index(tar)


def test_an_index_of_anything_else_is_damage(tmp_path):
    tar = pack(tmp_path / "t.tar", 1)
    for content in (b"not an index", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00"):
        index_of(tar).write_bytes(content)
        with pytest.raises(DamagedIndex):
            read_index(tar)


def test_where_nothing_can_be_written_the_index_is_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a").mkdir()
    tar = pack(tmp_path / "a" / "t.tar", 3)
    index_of(tar).mkdir()  # no file can have this name now, whoever writes it
    samples = load(str(tar)).samples
    assert len(list(cache_folder().rglob(f"*{ENDING}"))) == 1
    assert cache_folder() == tmp_path / "cache" / "unicl"
    blank(tar)
    assert load(str(tar)).samples == samples
    (tmp_path / "b").mkdir()
    other = pack(tmp_path / "b" / "t.tar", 2)
    index_of(other).mkdir()
    assert len(load(str(other)).samples) == 2


def test_where_nothing_can_be_written_at_all_the_tar_is_read_as_before(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    tar = pack(tmp_path / "t.tar", 3)
    index_of(tar).mkdir()
    for _ in range(2):
        assert len(load(str(tar)).samples) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "t.tar", "t.tar.index"]


def test_no_index_is_kept_of_a_tar_that_changed_meanwhile(tmp_path):
    tar = pack(tmp_path / "t.tar", 3)
    stamp = stamp_of(tar)
    pack(tar, 4)
    assert write_index(tar, Members(()), stamp=stamp) is None
    assert not index_of(tar).exists()


def test_no_index_is_kept_of_archives_that_are_cut_off_or_compressed(tmp_path):
    tar = pack(tmp_path / "t.tar", 9)
    tar.write_bytes(tar.read_bytes()[:9000])
    packed = tmp_path / "p.tar.gz"
    with tarfile.open(packed, "w:gz") as file:
        info = tarfile.TarInfo("a.png")
        info.size = len(picture())
        file.addfile(info, io.BytesIO(picture()))
    for path in (tar, packed):
        notes = load(str(path)).notes
        assert notes
        assert load(str(path)).notes == notes
        assert not index_of(path).exists()


def test_many_may_write_and_read_one_index_at_once(tmp_path):
    tar = pack(tmp_path / "t.tar", 40)
    wanted = load(str(tar)).samples
    index_of(tar).unlink()
    with ThreadPoolExecutor(8) as pool:
        sources = list(pool.map(lambda _: load(str(tar)), range(24)))
    assert all(source.samples == wanted and not source.notes for source in sources)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.tar", "t.tar.index"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    replace_file(path, b"old", sync=True)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        replace_file(tmp_path / "folder", b"new")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json", "folder"]


def test_images_are_read_in_any_order_by_their_offset(tmp_path):
    tar = pack(tmp_path / "t.tar", 20)
    load(str(tar))
    samples = load(str(tar)).samples
    order = random.Random(1).sample(range(20), 20)
    assert [read_bytes(samples[k].image) for k in order] == [picture(k) for k in order]


def test_an_index_outlives_its_tar(tmp_path):
    tar = pack(tmp_path / "t.tar", 3)
    assert not has_index(tar)
    assert kept_index(tar) is None
    load(str(tar))
    known, size = read_index(tar), tar.stat().st_size
    tar.unlink()
    assert has_index(tar)
    assert kept_index(tar) == (known, size)
    index_of(tar).write_bytes(b"damaged")
    assert kept_index(tar) is None
