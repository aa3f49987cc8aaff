import base64
import json

import pytest

from pictures import picture
from unicl.data.image import decode
from unicl.data.sources import load, read_bytes
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
    assert source.notes == ("images without a caption: 1 (first: image 12)",)
    assert all(isinstance(sample.image, Slice) for sample in source.samples[:3])
    assert [read_bytes(sample.image) for sample in source.samples[:3]] == [picture(number) for number in (10, 11, 12)]
    assert decode(source.samples[0].image).shape == (3, 20, 24)


def test_several_pairs_in_a_folder_ask_for_one(tmp_path):
    write(write(tmp_path), split="valid")
    with pytest.raises(UserError, match="has 2 pairs of _imgs.tsv and _texts.jsonl: give one file of a pair"):
        load(str(tmp_path))
    assert len(load(f"{tmp_path}/valid_imgs.tsv").samples) == 4


def test_captions_of_images_that_are_not_there_are_counted(tmp_path):
    write(tmp_path, texts=({"text": "x", "image_ids": [99]},))
    assert "images with a caption that are not in the tsv: 1 (first: image 99)" in load(str(tmp_path)).notes


def test_broken_base64_spoils_one_image_only(tmp_path):
    write(tmp_path)
    with (tmp_path / "train_imgs.tsv").open("a", encoding="utf-8") as file:
        file.write("13\tiVBORw0KGgo!!!\n")
    source = load(str(tmp_path))
    with pytest.raises(BadImage, match="broken base64"):
        decode(source.samples[3].image)


def test_a_line_of_another_form_is_named(tmp_path):
    write(tmp_path, texts=({"text": "x"},))
    with pytest.raises(UserError, match=r"train_texts.jsonl, line 1 has 'text'; wanted are 'text' and 'image_ids'"):
        load(str(tmp_path))
    write(tmp_path)
    (tmp_path / "train_imgs.tsv").write_text("10 abc\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"train_imgs.tsv, line 1: wanted is an id, a tab and an image in base64"):
        load(str(tmp_path))
