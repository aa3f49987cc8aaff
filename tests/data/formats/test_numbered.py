import pytest

from pictures import picture
from unicl.data.formats.numbered import is_numbered
from unicl.data.image import decode
from unicl.data.sources import load
from unicl.errors import UserError

COCO = ("COCO_train2014_000000000009", "COCO_val2014_000000000042")


def flickr(folder, lines):
    (folder / "images").mkdir()
    for name in ("100", "200"):
        (folder / "images" / f"{name}.jpg").write_bytes(picture(int(name)))
    (folder / "flickr30k_cn_test.txt").write_text("\n".join(lines), encoding="utf-8")
    return f"{folder / 'flickr30k_cn_test.txt'}?root=images"


def coco(folder):
    for name in COCO:
        part = folder / "mscoco" / name.split("_")[1]
        part.mkdir(parents=True)
        (part / f"{name}.jpg").write_bytes(picture())
    texts = f"{COCO[0]}#0\t一只猫\n{COCO[1]}#0\t一条狗\n{COCO[1]}#1\t狗在草地上\n"
    (folder / "imageid.human-written-caption.txt").write_text(texts, encoding="utf-8")
    (folder / "imageid.manually-translated-caption.txt").write_text(f"{COCO[1]}#0\t小狗\n", encoding="utf-8")
    (folder / "coco-cn_test.txt").write_text(f"{COCO[1]}\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("lines", [("100.jpg#0\t两个人", "100.jpg#1\t人在走路", "200.jpg#0\t一条狗"),
                                   ("100#zhc#0 两个人", "100#zhc#1 人在走路", "200#zhc#0 一条狗"),
                                   ("100#0\t两个人", "100#1\t人在走路", "", "200#0\t一条狗")])  # fmt: skip
def test_flickr30k_cn_has_several_captions_an_image(tmp_path, lines):
    source = load(flickr(tmp_path, lines))
    assert source.format == "numbered captions"
    assert [sample.captions for sample in source.samples] == [("两个人", "人在走路"), ("一条狗",)]
    assert decode(source.samples[0].image).shape == (3, 20, 24)
    assert source.guessed == {"image": "files in images", "text": "flickr30k_cn_test.txt"}


def test_coco_cn_has_lists_of_its_parts(tmp_path):
    coco(tmp_path)
    source = load(f"{tmp_path / 'coco-cn_test.txt'}?root=mscoco")
    assert [(sample.id, sample.captions) for sample in source.samples] == [(COCO[1], ("一条狗", "狗在草地上"))]
    everything = load(f"{tmp_path / 'imageid.human-written-caption.txt'}?root=mscoco")
    assert [sample.id for sample in everything.samples] == list(COCO)
    other = load(f"{tmp_path / 'coco-cn_test.txt'}?root=mscoco&text=imageid.manually-translated-caption.txt")
    assert other.samples[0].captions == ("小狗",)
    with pytest.raises(UserError, match="there is no nowhere.txt beside it with their captions"):
        load(f"{tmp_path / 'coco-cn_test.txt'}?root=mscoco&text=nowhere.txt")


def test_images_that_are_not_there_are_counted_and_all_of_them_an_error(tmp_path):
    source = load(flickr(tmp_path, ("100#0\tx", "300#0\ty")))
    assert source.notes == ("images that are not there, left out: 1 (first: 300)",)
    (tmp_path / "flickr30k_cn_test.txt").write_text("300#0\ty\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"none of the 1 images .* name the folder that holds them: .*\?root=DIR"):
        load(str(tmp_path / "flickr30k_cn_test.txt"))


def test_a_line_of_another_form_is_named(tmp_path):
    typed = flickr(tmp_path, ("100#0\tx", "no number"))
    with pytest.raises(UserError, match=r"line 2: wanted is an image with a number, a tab and a caption"):
        load(typed)


def test_other_texts_are_not_taken_for_captions(tmp_path):
    for name, content in (("a.txt", "cat\n"), ("b.txt", ""), ("c.md", "1#0\tx\n"), ("d.txt", f"{COCO[0]}\n")):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert not is_numbered(tmp_path / name)
    assert not is_numbered(tmp_path / "nowhere.txt")
