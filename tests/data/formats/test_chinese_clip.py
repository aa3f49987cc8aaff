import base64
import json

import pytest

from chinese_files import images_of, queries, write_entries, write_lmdb, write_pair
from pictures import encoded, noise, picture
from unicl.data.image import decode
from unicl.data.quarantine import Quarantine
from unicl.data.shards.manifest import ShardSettings
from unicl.data.shards.write import shard
from unicl.data.sources import load, read_bytes
from unicl.data.tars import offsets
from unicl.errors import BadImage, UserError
from unicl.space import Slice

TEXTS = (
    {"text_id": 1, "text": "红色的苹果", "image_ids": [10, 11]},
    {"text_id": 2, "text": " 一个苹果 ", "image_ids": [10]},
    {"text_id": 3, "text": "没有图片", "image_ids": []},
)


def write(folder, split="train", texts=TEXTS):
    lines = [f"{number}\t{base64.urlsafe_b64encode(picture(number)).decode()}\n" for number in (10, 11, 12)]
    (folder / f"{split}_imgs.tsv").write_text("".join(lines), encoding="utf-8")
    rows = [json.dumps(entry, ensure_ascii=False) for entry in texts]
    (folder / f"{split}_texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def told(source):
    """Image id to its captions and content, of the samples that have an image."""
    images = [sample for sample in source.samples if sample.image is not None]
    return {sample.id: (set(sample.captions), read_bytes(sample.image)) for sample in images}


def expected(count=16):
    """What `told` says of the data that `chinese_files` writes."""
    texts = {id: {text for _, text, images in queries(count) if id in images} for id in images_of(count)}
    return {f"image {id}": (texts[id], content) for id, content in images_of(count).items()}


def test_the_pair_of_files_is_read_in_place(tmp_path):
    write(tmp_path)
    for typed in (tmp_path, tmp_path / "train_imgs.tsv", tmp_path / "train_texts.jsonl"):
        source = load(str(typed))
        assert source.format == "chinese-clip"
        assert [(sample.id, sample.captions) for sample in source.samples] == [
            ("image 10", ("红色的苹果", "一个苹果")),
            ("image 11", ("红色的苹果",)),
            ("image 12", ()),
            ("text 3", ("没有图片",)),
        ]
    assert source.guessed == {"image": "train_imgs.tsv", "text": "train_texts.jsonl"}
    assert source.texts == tmp_path / "train_texts.jsonl"
    assert source.notes == ("images without a caption: 1 (first: image 12)",)
    assert all(isinstance(sample.image, Slice) for sample in source.samples[:3])
    assert [read_bytes(sample.image) for sample in source.samples[:3]] == [picture(number) for number in (10, 11, 12)]
    assert decode(source.samples[0].image).shape == (3, 20, 24)


@pytest.mark.parametrize(
    ("split", "images", "texts"),
    [
        ("X", "_imgs.tsv", "_texts.jsonl"),
        ("muge_train", ".tsv", "_texts.jsonl"),
        ("MR_train", "_imgs.tsv", "_queries.jsonl"),
        ("muge_train", ".tsv", ".jsonl"),
    ],
)
def test_the_texts_beside_a_tsv_are_found_by_its_name(tmp_path, split, images, texts):
    tsv = write_pair(tmp_path, split, images=images, texts=texts)
    for typed in (tmp_path, tsv, tmp_path / f"{split}{texts}"):
        source = load(str(typed))
        assert told(source) == expected()
        assert source.guessed == {"image": tsv.name, "text": f"{split}{texts}"}


def test_an_lmdb_is_the_same_data(tmp_path):
    split = write_lmdb(tmp_path / "lmdb")
    for typed in (split, split / "imgs", split / "pairs"):
        source = load(str(typed))
        assert (source.format, source.texts) == ("chinese-clip", split / "pairs")
        assert told(source) == expected()
        assert all(isinstance(sample.image, Slice) for sample in source.samples)


def test_shards_made_of_an_lmdb_or_a_tsv_are_the_same_data(tmp_path):
    for source in (load(str(write_lmdb(tmp_path / "lmdb"))), load(str(write_pair(tmp_path)))):
        out = tmp_path / f"shards of {source.name}"
        shard([source], out, settings=ShardSettings(), workers=1)
        assert told(load(str(out))) == expected()


def test_a_test_set_has_its_texts_in_the_file_and_not_in_the_lmdb(tmp_path):
    asked = [(1, "包", []), (2, "鞋", [])]
    write_pair(tmp_path, "test", asked=asked)
    (tmp_path / "test_imgs.tsv").unlink()
    source = load(str(write_lmdb(tmp_path / "lmdb", "test", asked=asked)))
    assert source.texts == tmp_path / "test_texts.jsonl"
    assert [sample.captions for sample in source.samples if sample.image is None] == [("包",), ("鞋",)]


def test_texts_of_another_name_are_given_or_switched_off(tmp_path):
    tsv = write_pair(tmp_path)
    (tmp_path / "train_texts.jsonl").rename(tmp_path / "others.jsonl")
    assert told(load(f"{tsv}?text=others.jsonl")) == expected()
    assert told(load(f"{write_lmdb(tmp_path / 'lmdb')}?text={tmp_path / 'others.jsonl'}")) == expected()
    alone = load(f"{tsv}?text=")
    assert (len(alone.samples), alone.texts, alone.notes) == (16, None, ())
    with pytest.raises(UserError, match="text=nowhere.jsonl: there is no such file beside the data"):
        load(f"{tsv}?text=nowhere.jsonl")


def test_a_table_of_another_kind_with_such_a_name_stays_a_table(tmp_path):
    (tmp_path / "a.tsv").write_text("image\tcaption\nb.png\tx\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"image": "b.png", "text": "y"}\n', encoding="utf-8")
    (tmp_path / "b.png").write_bytes(picture())
    assert [load(str(tmp_path / name)).format for name in ("a.tsv", "a.jsonl")] == ["tsv", "jsonl"]


def test_several_pairs_in_a_folder_ask_for_one(tmp_path):
    write(write(tmp_path), split="valid")
    with pytest.raises(UserError, match="has 2 pairs of _imgs.tsv and _texts.jsonl: give one file of a pair"):
        load(str(tmp_path))
    assert len(load(f"{tmp_path}/valid_imgs.tsv").samples) == 4


@pytest.mark.parametrize("typed", ["MUGE", "MUGE/lmdb"])
def test_several_lmdbs_in_a_folder_ask_for_one(tmp_path, typed):
    for split in ("train", "valid"):
        write_lmdb(tmp_path / "MUGE" / "lmdb", split, count=2)
    with pytest.raises(UserError, match="holds the LMDBs of parts of a data set: give .*train or .*valid"):
        load(str(tmp_path / typed))


def test_half_of_a_layout_says_what_is_missing(tmp_path):
    tsv = write_pair(tmp_path, "a", images=".tsv")
    texts = (tmp_path / "a_texts.jsonl").rename(tmp_path / "b_texts.jsonl")
    with pytest.raises(UserError, match=r"a.tsv holds images in base64, and there is no a_texts.jsonl or a_queries"):
        load(str(tsv))
    with pytest.raises(UserError, match=r"names its images by ids, and there is no b_imgs.tsv or b.tsv beside it"):
        load(str(texts))
    assert {sample.image for sample in load(f"{texts}?image=").samples} == {None}
    (tmp_path / "photo.csv").write_text("a,b\n", encoding="utf-8")
    with pytest.raises(UserError, match="photo.csv is not in Chinese-CLIP's layout"):
        load(f"{tmp_path / 'photo.csv'}?format=chinese-clip")


def test_an_lmdb_without_its_index_says_what_to_do(tmp_path):
    split = write_lmdb(tmp_path, "train", count=2)
    (split / "pairs").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"has imgs/ and no pairs/, the index that says which text belongs to which"):
        load(str(split))
    assert len(load(f"{split}?text=").samples) == 2
    (split / "imgs").rename(split / "pairs")
    with pytest.raises(UserError, match=r"has pairs/ and no imgs/, the LMDB of its images: copy it there"):
        load(str(split))
    (split / "imgs").mkdir()
    with pytest.raises(UserError, match=r"holds no data.mdb"):
        load(f"{split}?text=")
    write_entries(split / "imgs", {"1": "abc"})
    with pytest.raises(UserError, match=r"has no num_samples or num_images, which is written last"):
        load(f"{split}?text=")


def test_captions_of_images_that_are_not_there_are_counted_and_all_of_them_an_error(tmp_path):
    write(tmp_path, texts=({"text": "x", "image_ids": [99, 10]},))
    source = load(str(tmp_path))
    assert "images with a caption that are not in train_imgs.tsv: 1 (first: image 99)" in source.notes
    assert source.samples[0].captions == ("x",)
    write(tmp_path, texts=({"text": "x", "image_ids": [99]},))
    with pytest.raises(UserError, match=r"none of the 1 images that train_texts.jsonl names \(the first is '99'\)"):
        load(str(tmp_path))


def test_an_id_that_comes_again_is_counted_and_read_once(tmp_path):
    write(tmp_path)
    with (tmp_path / "train_imgs.tsv").open("a", encoding="utf-8") as file:
        file.write(f"10\t{base64.b64encode(picture(5)).decode()}\n")
    source = load(str(tmp_path))
    assert "images whose id was there already, left out: 1 (first: image 10)" in source.notes
    assert read_bytes(source.samples[0].image) == picture(10)
    assert len({sample.id for sample in source.samples}) == len(source.samples)


def test_a_mark_carriage_returns_and_empty_lines_do_no_harm(tmp_path):
    write(tmp_path)
    content = (tmp_path / "train_imgs.tsv").read_bytes()
    (tmp_path / "train_imgs.tsv").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n\r\n") + b"\n")
    (tmp_path / "train_imgs.tsv").rename(tmp_path / "train.tsv")
    source = load(str(tmp_path / "train.tsv"))
    assert [sample.id for sample in source.samples][:3] == ["image 10", "image 11", "image 12"]
    assert [read_bytes(sample.image) for sample in source.samples[:3]] == [picture(number) for number in (10, 11, 12)]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("iVBORw0KGgo!!!", "broken base64"),
        (base64.b64encode(b"this is no image at all, only text").decode(), "not an image"),
        ("", "empty file"),
        (base64.b64encode(picture()).decode()[:120], "cut off"),
    ],
)
def test_base64_that_is_no_image_spoils_one_image_only_and_is_listed(tmp_path, cell, reason):
    write(tmp_path)
    with (tmp_path / "train_imgs.tsv").open("a", encoding="utf-8") as file:
        file.write(f"13\t{cell}\n")
    source = load(str(tmp_path))
    with pytest.raises(BadImage, match=reason):
        decode(source.samples[3].image)
    out = tmp_path / "shards"
    shard([source], out, settings=ShardSettings(), workers=1)
    assert Quarantine(limit=9, path=out / "quarantine.jsonl").reasons.keys() == {f"{tmp_path.name}/image 13"}


def test_a_broken_first_line_does_not_hide_what_the_file_is(tmp_path):
    path = write_pair(tmp_path, "train", images=".tsv")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(["100\tno base64\n", *lines[1:]]))
    source = load(str(path))
    assert source.format == "chinese-clip"
    assert len([sample for sample in source.samples if sample.image is not None]) == len(lines)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_images_of_every_format_are_read_from_base64(tmp_path, format):
    content = encoded(noise(16, 16), format=format)
    for pack in (base64.b64encode, base64.urlsafe_b64encode):
        file = tmp_path / "one"
        file.write_bytes(pack(content))
        assert decode(Slice(file, 0, file.stat().st_size)).shape == (3, 16, 16)


def test_a_tsv_is_looked_through_once(tmp_path):
    tsv = write_pair(tmp_path)
    load(str(tsv))
    index = tsv.with_name(tsv.name + offsets.ENDING)
    assert [member.key for member in offsets.read_index(tsv).found] == [str(id) for id in images_of()]
    before = index.stat().st_mtime_ns
    assert told(load(str(tsv))) == expected()
    assert index.stat().st_mtime_ns == before
    with tsv.open("a", encoding="utf-8") as file:
        file.write(f"999\t{base64.b64encode(picture()).decode()}\n")
    assert "image 999" in told(load(str(tsv)))
    index.write_bytes(b"damaged")
    assert f"the index of {tsv.name} was damaged and is made anew" in load(str(tsv)).notes
    assert index.stat().st_size > 100


def test_a_line_of_another_form_is_named(tmp_path):
    write(tmp_path, texts=({"text": "x"},))
    with pytest.raises(UserError, match=r"train_texts.jsonl, line 1 has 'text'; wanted are 'text' and 'image_ids'"):
        load(str(tmp_path))
    write(tmp_path)
    (tmp_path / "train_imgs.tsv").write_text("10 abc\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"train_imgs.tsv, line 1: wanted is an id, a tab and an image in base64"):
        load(str(tmp_path))
    (tmp_path / "train_imgs.tsv").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"holds no images; wanted is one a line"):
        load(str(tmp_path))
