import io
import json
import tarfile

import pytest

from pictures import picture
from unicl.data.sources import load, read_bytes
from unicl.errors import UserError
from unicl.space import Slice


def pack(path, members, mode="w"):
    """A tar of (name, content) pairs."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def shard(first, count):
    """What img2dataset writes: an image, its caption, and a json with more."""
    for number in range(first, first + count):
        fields = {"caption": f"caption {number}", "url": "https://e.org", "key": f"{number:09}", "status": "success"}
        yield f"{number:09}.jpg", picture(number)
        yield f"{number:09}.json", json.dumps(fields).encode()
        yield f"{number:09}.txt", f"caption {number}".encode()


def brief(source):
    return {sample.id: (sample.captions, sample.labels) for sample in source.samples}


def test_the_output_of_img2dataset_is_read_as_it_is(tmp_path):
    for number in range(2):
        pack(tmp_path / f"0000{number}.tar", shard(number * 10_000, 2))
        (tmp_path / f"0000{number}.parquet").write_bytes(b"not read")
        (tmp_path / f"0000{number}_stats.json").write_text("{}", encoding="utf-8")
    expected = {
        "00000.tar/000000000": (("caption 0",), ()),
        "00000.tar/000000001": (("caption 1",), ()),
        "00001.tar/000010000": (("caption 10000",), ()),
        "00001.tar/000010001": (("caption 10001",), ()),
    }
    for typed in (str(tmp_path), f"{tmp_path}/{{00000..00001}}.tar", f"{tmp_path}/*.tar"):
        source = load(typed)
        assert source.format == "tar"
        assert brief(source) == expected
        assert source.guessed["text"] == "txt"
    assert all(isinstance(sample.image, Slice) for sample in source.samples)
    assert read_bytes(source.samples[3].image) == picture(10_001)


def test_captions_of_the_json_and_labels_of_cls_are_read(tmp_path):
    members = [("a.png", picture()), ("a.json", b'{"caption": ["one", "two"], "alt": "other"}'), ("a.cls", b"0\n")]
    path = pack(tmp_path / "t.tar", members)
    assert brief(load(path)) == {"t.tar/a": (("one", "two"), ("0",))}
    assert brief(load(f"{path}?text=alt")) == {"t.tar/a": (("other",), ("0",))}
    assert load(path, names={"0": "cat"}).samples[0].labels == ("cat",)
    with pytest.raises(UserError, match=r"no column 'title', which text= names; it has 'cls', 'caption', 'alt'"):
        load(f"{path}?text=title")


def test_members_of_one_name_need_not_stand_together(tmp_path):
    members = [("x/a.jpg", picture(0)), ("x/b.jpg", picture(1)), ("x/a.txt", b"one\ntwo"), ("x/b.txt", b"other")]
    source = load(pack(tmp_path / "t.tar", members))
    assert brief(source) == {"t.tar/x/a": (("one", "two"), ()), "t.tar/x/b": (("other",), ())}


def test_the_plain_extension_is_the_image_unless_another_is_named(tmp_path):
    path = pack(tmp_path / "t.tar", [("a.mask.png", picture(0)), ("a.jpg", picture(1)), ("a.txt", b"x")])
    assert read_bytes(load(path).samples[0].image) == picture(1)
    assert read_bytes(load(f"{path}?image=mask.png").samples[0].image) == picture(0)
    with pytest.raises(UserError, match=r"no images with the extension 'webp'; it has 'mask.png', 'jpg'"):
        load(f"{path}?image=webp")


def test_a_sample_without_an_image_is_a_text(tmp_path):
    source = load(pack(tmp_path / "t.tar", [("a.jpg", picture()), ("a.txt", b"one"), ("b.txt", b"two")]))
    assert source.samples[1].image is None
    assert source.notes == ("samples without an image: 1 (first: t.tar/b)",)


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "x/../../a.jpg", "..\\a.jpg"])
def test_names_that_leave_the_archive_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"t.tar has the member '.*', which leaves the archive"):
        load(pack(tmp_path / "t.tar", [(name, picture())]))


def test_links_and_hidden_members_are_left_out(tmp_path):
    path = pack(tmp_path / "t.tar", [("a.jpg", picture()), ("._a.jpg", b"x")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = load(path)
    assert list(brief(source)) == ["t.tar/a"]
    assert source.notes == ("links and devices in archives, left out: 1 (first: t.tar/b.jpg)",)


@pytest.mark.parametrize("keep", [0.5, 0.7, 0.9])
def test_an_archive_that_is_cut_off_gives_what_stands_before_the_cut(tmp_path, keep):
    path = tmp_path / "t.tar"
    pack(path, shard(0, 20))
    whole = brief(load(str(path)))
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data
    path.write_bytes(path.read_bytes()[: int(end * keep)])
    source = load(str(path))
    found = brief(source)
    assert 0 < len(found) < 20
    assert found == dict(list(whole.items())[: len(found)])
    assert source.notes == (f"t.tar is cut off after {len(found)} samples, which are used; fetch or write it again",)
    assert all(read_bytes(sample.image) for sample in source.samples)


def test_an_archive_cut_off_in_its_first_sample_is_an_error(tmp_path):
    path = tmp_path / "t.tar"
    pack(path, shard(0, 1))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"t.tar cannot be read as a tar archive, it is cut off or of another format"):
        load(str(path))


@pytest.mark.parametrize("content", [b"", b"not a tar archive" * 100])
def test_what_is_no_archive_is_an_error(tmp_path, content):
    (tmp_path / "t.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"t.tar cannot be read as a tar archive"):
        load(str(tmp_path / "t.tar"))


def test_an_empty_archive_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"t.tar holds no files; wanted are members such as"):
        load(pack(tmp_path / "t.tar", []))


@pytest.mark.parametrize(
    ("name", "mode"), [("t.tar.gz", "w:gz"), ("t.tgz", "w:gz"), ("t.tar", "w:gz"), ("t.tar.xz", "w:xz")]
)
def test_a_compressed_archive_is_held_in_memory_and_says_so(tmp_path, name, mode):
    source = load(pack(tmp_path / name, shard(0, 3), mode))
    assert [sample.image for sample in source.samples] == [picture(number) for number in range(3)]
    assert source.notes == (f"{name} is compressed: its images are held in memory; unpacked, they stay on disk",)


def test_a_compressed_archive_that_is_cut_off_gives_what_it_can_or_an_error(tmp_path):
    path = tmp_path / "t.tar.gz"
    pack(path, shard(0, 20), "w:gz")
    path.write_bytes(path.read_bytes()[:-1500])
    source = load(str(path))
    assert 0 < len(source.samples) < 20
    assert "is cut off after" in source.notes[1]


def test_wrong_text_and_broken_json_name_their_member(tmp_path):
    path = pack(tmp_path / "a.tar", [("a.jpg", picture()), ("a.txt", b"caf\xe9 noir")])
    with pytest.raises(UserError, match=r"a.tar/a.txt is not UTF-8 text: byte 0xe9 at position 3"):
        load(path)
    with pytest.raises(UserError, match=r"b.tar/a.json is not JSON"):
        load(pack(tmp_path / "b.tar", [("a.jpg", picture()), ("a.json", b"{")]))


def test_long_names_are_read(tmp_path):
    name = "/".join(["folder" * 10] * 4) + "/图片"
    source = load(pack(tmp_path / "t.tar", [(f"{name}.jpg", picture()), (f"{name}.txt", b"x")]))
    assert brief(source) == {f"t.tar/{name}": (("x",), ())}
    assert read_bytes(source.samples[0].image) == picture()
