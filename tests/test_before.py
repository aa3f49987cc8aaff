from dataclasses import replace

import pytest

from tiny import tiny, write_photos
from unicl.before import check, introduce
from unicl.data.sources import load_all
from unicl.errors import UserError
from unicl.run import build_model
from unicl.towers.text import build_tokenizer
from unicl.train.learning import Learning
from unicl.train.stages import Plateau, Stage


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return load_all(write_photos(tmp_path_factory.mktemp("before"), each=4, findings=True))


def said(recipe, sources):
    lines = []
    model = build_model(recipe, sources, tokenizer=build_tokenizer(recipe.text, texts=["red green blue"]))
    introduce(recipe, sources, model=model, init=None, out="runs/a", say=lines.append)
    return lines


def test_a_recipe_says_what_its_data_lack(sources):
    check(tiny("itl"), sources)
    with pytest.raises(UserError, match=r"'cross_entropy' needs labels, but captions\.csv has"):
        check(tiny("cross_entropy"), sources[1:])
    parts = tiny("filip")
    with pytest.raises(UserError, match="text tower gives none"):
        check(replace(parts, text=replace(parts.text, parts=None)), sources)


def test_one_stage_is_told_in_one_line(sources):
    lines = said(tiny("clip", steps=6), sources)
    assert lines[0].startswith("photos: class folder, 12 samples")
    assert lines[-1] == "batch 12, 6 steps (3.0 epochs), adamw at lr 0.002, fp32, seed 0; everything is in runs/a"


def test_every_stage_says_what_learns_how_long_and_how_fast(sources):
    first = Stage(name="texts", image=Learning(part="none"), plateau=Plateau(metric="x/y", patience=3), steps=4)
    second = Stage(name="both", image=Learning(from_block=2, rates=(0, 0.1)), rate=0.1, size=48, batch=6, steps=8)
    third = Stage(name="names", text=Learning(only=("*.bias",)), image=Learning(part="head"), sources=("photos",))
    lines = said(replace(tiny("clip", steps=6), stages=(first, second, third)), sources)
    assert lines[-4:] == [
        "stage 1 of 3 (texts): image locked with its head, text learns; batch 12, 4 steps (2.0 epochs) or until x/y "
        "is no better for 3 evaluations, adamw at lr 0.002",
        "stage 2 of 3 (both): image learns from block 2 on at rates x (0, 0.1), text learns, at 48 px; batch 6, 8 "
        "steps (2.0 epochs), adamw at lr 0.0002",
        "stage 3 of 3 (names): image locked but for its head, text learns in part; batch 12, 6 steps (6.0 epochs), "
        "adamw at lr 0.002",
        "fp32, seed 0; everything is in runs/a",
    ]


def test_findings_must_be_known_of_images_and_of_texts_and_be_called_alike(tmp_path, sources):
    (tmp_path / "t.csv").write_text("text,finding:Edema\nno edema,0\n", encoding="utf-8")
    texts = load_all([str(tmp_path / "t.csv")])
    check(tiny("medclip"), sources)
    with pytest.raises(
        UserError, match=r"by their findings, but no images have any: photos has 12 samples with labels"
    ):
        check(tiny("medclip"), [sources[0], *texts])
    photos = [replace(each, samples=tuple(replace(s, captions=()) for s in each.samples)) for each in sources]
    with pytest.raises(
        UserError, match=r"of images \('blue', 'green', 'red'\) and of texts \('Edema'\) have no name in"
    ):
        check(tiny("medclip"), [*photos, *texts])


def test_a_second_view_of_texts_that_nothing_compares_is_a_mistake(sources):
    recipe = tiny("virtex")
    with pytest.raises(UserError, match="'virtex' compares no texts.*leave data.text_views at 1"):
        check(replace(recipe, data=replace(recipe.data, text_views=2)), sources)


def test_how_many_images_and_texts_with_findings_a_batch_has_is_told(tmp_path, sources):
    (tmp_path / "t.csv").write_text("text,finding:red\nnot red at all,0\n", encoding="utf-8")
    images = replace(sources[1], samples=tuple(replace(s, captions=()) for s in sources[1].samples))
    few, even = (
        said(tiny("medclip", batch=26), [images, *load_all([f"{tmp_path}/t.csv?weight={weight}"])])[-2]
        for weight in (1, 12)
    )
    assert few == (
        "of findings a batch has about 24 images and 2 texts; write 'PATH?weight=12' for the texts to have as many of "
        "them"
    )
    assert even == "of findings a batch has about 13 images and 13 texts"


def test_a_recipe_that_predicts_captions_needs_them_beside_images(sources, tmp_path):
    check(tiny("virtex"), sources)
    with pytest.raises(UserError, match=r"'virtex' predicts captions.*photos has 12 samples with labels.*text=COLUMN"):
        check(tiny("virtex"), sources[:1])
    (tmp_path / "texts.csv").write_text("caption\na red square\n", encoding="utf-8")
    photos, texts = sources[0], load_all((str(tmp_path / "texts.csv"),))[0]
    with pytest.raises(
        UserError, match=r"needs both in one row, which none has.*texts\.csv has 1 samples with captions"
    ):
        check(tiny("virtex"), [photos, texts])
    plain = tiny("virtex")
    with pytest.raises(UserError, match=r"--set data\.captions=true"):
        check(replace(plain, data=replace(plain.data, captions=False)), sources)


def test_images_and_texts_that_never_come_together_are_no_pairs(tmp_path, sources):
    (tmp_path / "t.csv").write_text("text\nno edema\n", encoding="utf-8")
    alone = [replace(each, samples=tuple(replace(s, captions=(), labels=()) for s in each.samples)) for each in sources]
    with pytest.raises(
        UserError, match=r"'clip' needs pairs, but no row has both an image and a text or label: photos has"
    ):
        check(tiny("clip"), [*alone, *load_all([str(tmp_path / "t.csv")])])
