import pytest
from PIL import Image

from unicl.data.sources import load
from unicl.errors import UserError
from unicl.space import Finding

LISTS = {
    "cat_trainval": "000001  1\n000002 -1\n000003  0\n",
    "dog_trainval": "000001 -1\n000002  1\n000003 -1\n",
    "cat_test": "000004  1\n",
    "dog_test": "000004 -1\n",
    "trainval": "000001\n000002\n000003\n",
}


@pytest.fixture
def folder(tmp_path):
    top = tmp_path / "VOC2007"
    (top / "ImageSets" / "Main").mkdir(parents=True)
    (top / "JPEGImages").mkdir()
    for name, content in LISTS.items():
        (top / "ImageSets" / "Main" / f"{name}.txt").write_text(content)
    for k in range(1, 5):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(top / "JPEGImages" / f"{k:06d}.jpg")
    return top


def test_one_and_minus_one_are_there_and_not_there_and_zero_is_difficult(folder):
    source = load(f"{folder}?where=split:trainval")
    assert source.format == "voc"
    known = {sample.image.name: dict(sample.findings) for sample in source.samples}
    assert known == {
        "000001.jpg": {"cat": Finding.PRESENT, "dog": Finding.ABSENT},
        "000002.jpg": {"cat": Finding.ABSENT, "dog": Finding.PRESENT},
        "000003.jpg": {"cat": Finding.UNCERTAIN, "dog": Finding.ABSENT},
    }
    assert [s.image.name for s in load(f"{folder}?where=split:test").samples] == ["000004.jpg"]


def test_a_part_must_be_named_and_lists_must_be_lists(folder):
    with pytest.raises(UserError, match=r"the parts test, trainval.*where=split:test"):
        load(str(folder))
    (folder / "ImageSets" / "Main" / "cat_test.txt").write_text("000004 7\n")
    with pytest.raises(UserError, match=r"cat_test\.txt, line 1: '000004 7'; wanted is an image and 1"):
        load(f"{folder}?where=split:test")
    for path in (folder / "ImageSets" / "Main").glob("*_*.txt"):
        path.unlink()
    with pytest.raises(UserError, match=r"no list of a class"):
        load(f"{folder}?where=split:test")
